"""How good a list of heavy hitters is: F1, NCR, relative error; and the truth beside it."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Dataset
from strategies.heavy_hitters.tree import NOTHING


def true_counts(dataset: Dataset, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all prefixes of so many bits that somebody holds, most frequent first, and counts.

    Of prefixes with equal counts, the smaller number comes first.
    """
    whole = dataset.items.bits if dataset.items else 0
    items = dataset.test_x.cpu().numpy() >> (whole - bits)
    prefixes, at = np.unique(items, return_inverse=True)
    counts = np.bincount(at, weights=dataset.test_y.cpu().numpy().astype(np.float64))
    order = np.argsort(-counts, kind="stable")
    return prefixes[order], counts[order]


def scores(
    found: np.ndarray, counts: np.ndarray, true: np.ndarray, true_counts: np.ndarray, k: int
) -> dict[str, float]:
    """Return how good a list is.

    f1 of the two sets of at most k; ncr: the true rank i earns k + 1 − i, over the sum of all; and
    relative-error: the mean of |ĉ − c|/c over the true top k, where one that is missing has ĉ = 0.

    Args:
        found: Items, best first; `NOTHING` in empty places.
        counts: Their estimated counts.
        true: All items, most frequent first.
        true_counts: Their counts.
        k: Of top k.

    Example:
        >>> scores(np.array([5, 9]), np.array([8.0, 3.0]), np.array([5, 7, 9]),
        ...        np.array([10.0, 4.0, 1.0]), 2)
        {'f1': 0.5, 'ncr': 0.6666666666666666, 'relative-error': 0.6}
    """
    estimated = {int(v): c for v, c in zip(found, counts, strict=True) if v != NOTHING}
    top = [int(v) for v in true[:k]]
    hits = [i for i, v in enumerate(top) if v in estimated]
    errors = [abs(estimated.get(v, 0.0) - c) / c for v, c in zip(top, true_counts[:k], strict=True)]
    earned = sum(len(top) - i for i in hits)
    return {
        "f1": 2 * len(hits) / max(len(estimated) + len(top), 1),
        "ncr": earned / max(len(top) * (len(top) + 1) / 2, 1),
        "relative-error": float(np.mean(errors)) if errors else 0.0,
    }
