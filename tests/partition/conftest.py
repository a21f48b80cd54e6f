"""Made-up data sets for the tests of the partitions: labels decide, inputs hardly matter."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from fedsim.data.dataset import Dataset

MakeDataset = Callable[..., Dataset]


@pytest.fixture
def labelled() -> MakeDataset:
    def make(
        labels: np.ndarray | list[int],
        x: torch.Tensor | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> Dataset:
        y = torch.as_tensor(np.asarray(labels))
        x = torch.zeros(len(y), 1) if x is None else x
        return Dataset(
            name="made_up",
            task="classification",
            train_x=x,
            train_y=y,
            test_x=x[:1],
            test_y=y[:1],
            num_outputs=int(y.max()) + 1,
            columns=columns or {},
        )

    return make


@pytest.fixture
def balanced(labelled: MakeDataset) -> Callable[[int, int], Dataset]:
    """`balanced(C, n)`: n samples of each of C classes, in a shuffled order."""

    def make(num_classes: int, per_class: int) -> Dataset:
        labels = np.repeat(np.arange(num_classes), per_class)
        return labelled(np.random.default_rng(99).permutation(labels))

    return make
