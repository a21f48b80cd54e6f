"""The prefix tree of M-bit items: its levels, which users report at which, and what is kept.

    level h = 1..g has prefixes of b_h = ⌈hM/g⌉ bits; a node's children append b_{h+1} − b_h bits
    users of a client, in an order drawn from (seed, client): the u-th of n belongs to the level in
    whose share of [0, 1) the point (u + U)/n lies, U uniform: level sizes are as the shares say up
    to one user, and a client with a single user reports at a level drawn by the shares

All of it is public, and independent of items.

Shapes: D candidates of a level, n users of a client.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim import seeds

NOTHING = -1
"""In the place of an item or a prefix, where there is none."""


def level_bits(bits: int, levels: int) -> np.ndarray:
    """Return b_0 = 0, b_1, ..., b_g = M.

    Example:
        >>> level_bits(7, 3).tolist()
        [0, 3, 5, 7]
    """
    return -(-np.arange(levels + 1) * bits // levels)


def linear_shares(levels: int, first: float = 0.5) -> np.ndarray:
    """Return shares of the users that grow linearly from `first` to 2 − `first` times the mean.

    Example:
        >>> linear_shares(3).tolist()
        [0.16666666666666666, 0.3333333333333333, 0.5]
    """
    if levels == 1:
        return np.ones(1)
    weights = np.linspace(first, 2 - first, levels)
    shares: np.ndarray = weights / weights.sum()
    return shares


def assign(seed: int, client: int, count: int, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the level, 0-based, at which each of a client's users reports; int64 `[n]`."""
    rng = seeds.rng(seed, 0, client, "report-levels")
    place = (rng.permutation(count) + rng.random()) / max(count, 1)
    edges = np.cumsum(shares)[:-1] / np.sum(shares)
    return np.searchsorted(edges, place, side="right")


def extend(prefixes: np.ndarray, bits: int) -> np.ndarray:
    """Return all children of some prefixes, `bits` longer.

    Example:
        >>> extend(np.array([0, 3]), 1).tolist()
        [0, 1, 6, 7]
    """
    return ((prefixes[:, None] << bits) | np.arange(1 << bits)).reshape(-1)


def best(estimates: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest estimates, largest first; of equals, the first."""
    return np.argsort(-estimates, kind="stable")[:count]


def kept_count(
    estimates: np.ndarray, *, k: int, widest: int, slack: float | None, std: float
) -> int:
    """Return how many candidates of a level go on.

    Args:
        estimates: f̂ `[D]`.
        k: Of top k: the fewest.
        widest: The most.
        slack: z: those go on whose f̂ is within z standard deviations of the k-th; None: `widest`.
        std: The oracle's.
    """
    if slack is None or len(estimates) <= k:
        return widest
    threshold = -np.partition(-estimates, k - 1)[k - 1] - slack * std
    return int(np.clip((estimates >= threshold).sum(), k, widest))
