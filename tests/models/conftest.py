"""Small made-up data sets of each shape, for the tests of the models."""

from collections.abc import Callable

import pytest
import torch

from fedsim.data.dataset import Dataset, Task

MakeDataset = Callable[..., Dataset]


@pytest.fixture
def images() -> MakeDataset:
    def make(*shape: int, outputs: int = 10, task: Task = "classification", n: int = 6) -> Dataset:
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(n, *shape, generator=rng)
        y = torch.arange(n) % outputs if task == "classification" else torch.zeros(n, outputs)
        return Dataset(
            name="made_up",
            task=task,
            train_x=x,
            train_y=y,
            test_x=x[:2],
            test_y=y[:2],
            num_outputs=outputs,
        )

    return make


@pytest.fixture
def text() -> MakeDataset:
    def make(
        length: int = 32, tokens: int = 65, outputs: int = 65, per_position: bool = True, n: int = 6
    ) -> Dataset:
        rng = torch.Generator().manual_seed(0)
        x = torch.randint(tokens, (n, length), generator=rng)
        x[0, 0] = tokens - 1
        y = x % outputs if per_position else x[:, 0] % outputs
        return Dataset(
            name="made_up",
            task="classification",
            train_x=x,
            train_y=y,
            test_x=x[:2],
            test_y=y[:2],
            num_outputs=outputs,
        )

    return make
