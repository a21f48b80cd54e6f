"""Made-up populations for the tests of the participation models."""

from collections.abc import Callable

import numpy as np
import pytest

from fedsim.participation.base import Population

MakePopulation = Callable[..., Population]


def _unasked() -> np.ndarray:
    raise AssertionError("this model has no need of the label histogram, which costs O(samples)")


@pytest.fixture
def population() -> MakePopulation:
    def make(
        num_clients: int | None = None, seed: int = 0, histogram: np.ndarray | None = None
    ) -> Population:
        if histogram is None:
            return Population(num_clients=num_clients or 1, seed=seed, label_histogram=_unasked)
        return Population(num_clients=len(histogram), seed=seed, label_histogram=lambda: histogram)

    return make
