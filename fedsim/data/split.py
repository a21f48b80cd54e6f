"""The train/test split of a data set that is published without one."""

from __future__ import annotations

import numpy as np

from fedsim import seeds
from fedsim.errors import DataError


def holdout(
    num_samples: int, fraction: float, split_seed: int, labels_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test) sample indices, each int64 and ascending.

    The test part holds ceil(fraction N) samples. With labels the split is stratified: of the n_c
    samples of class c, floor(fraction n_c) or ceil(fraction n_c) are test samples.

    Args:
        num_samples: N.
        fraction: Share of test samples, in (0, 1).
        split_seed: Seed of the split. It is the data's own, not the scenario's, so that runs with
            different seeds are tested on the same samples.
        labels_N: Class of each sample, or None for no strata.

    Raises:
        DataError: No sample would be left on one side.
    """
    generator = seeds.rng(split_seed, 0, seeds.SERVER, "data.split")
    order = generator.permutation(num_samples)
    if labels_N is not None:
        order = order[np.argsort(labels_N[order], kind="stable")]
    # Every (1/fraction)-th of the samples, shuffled inside their class: no class can be missed by
    # more than one. The 1e-9 keeps 0.1 * 30 from counting as more than 3.
    taken = np.ceil(np.arange(num_samples + 1) * fraction - 1e-9)
    is_test = np.zeros(num_samples, bool)
    is_test[order] = np.diff(taken) > 0
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    if not len(train) or not len(test):
        raise DataError(
            f"data.test_fraction: {fraction} of {num_samples} samples leaves {len(train)} for "
            f"training and {len(test)} for testing; both need at least one"
        )
    return train, test
