"""The train/test and public/private splits of a data set that is published without one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

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


def keyed_uniform(names: Sequence[str], split_seed: int) -> np.ndarray:
    """Return one number in [0, 1) per name, float64 `[N]`: a function of the name and the seed.

    What is decided by it does not depend on what else there is: adding or removing a record moves
    no other, as claims about neighbouring data sets need, and equal names fall on the same side.
    """
    return np.array(
        [
            seeds.rng(split_seed, 0, zlib.crc32(name.encode()), "data.side").random()
            for name in names
        ],
        np.float64,
    )


def side_of(
    uniform_N: np.ndarray, test_fraction: float, public_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return who is for testing, and who of the others is public, bool `[N]` each.

    Example:
        >>> test, public = side_of(np.array([0.1, 0.3, 0.59, 0.61, 0.9]), 0.2, 0.5)
        >>> test.tolist(), public.tolist()
        ([True, False, False, False, False], [False, True, True, False, False])
    """
    test_N = uniform_N < test_fraction
    public_N = ~test_N & (uniform_N < test_fraction + (1 - test_fraction) * public_fraction)
    return test_N, public_N
