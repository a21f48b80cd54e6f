"""Shared steps of the partition schemes: from shares to counts, from counts to index arrays.

A scheme decides how many samples of each class each client gets, `count_NC`; everything here is
vectorised over clients and samples.

Shape suffixes: M samples, N clients, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedsim.errors import ConfigError
from fedsim.partition.base import ArrayPartition

_TRIES = 100
"""Draws before `min_size` is given up; one costs O(clients x classes), not O(samples)."""


def by_owner(owner_M: np.ndarray, num_clients: int, rng: np.random.Generator) -> ArrayPartition:
    """Return the partition in which sample `m` belongs to client `owner_M[m]`; -1 is unused.

    Each client's samples come in random order, so any prefix of them is a fair sample.
    """
    shuffled = rng.permutation(np.flatnonzero(owner_M >= 0))
    owner = owner_M[shuffled]
    # Small numbers are sorted by their digits, an order of magnitude faster; the order is the same.
    small = owner.astype(np.min_scalar_type(num_clients))
    order = shuffled[np.argsort(small, kind="stable")]
    return ArrayPartition(order, offsets(np.bincount(owner, minlength=num_clients)))


def draw_by_class(
    labels: np.ndarray,
    num_clients: int,
    min_size: int,
    draw: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> ArrayPartition:
    """Deal every sample out by counts per client and class that are drawn until all have enough.

    Args:
        labels: int64 `[M]`.
        num_clients: N.
        min_size: Samples that every client must get; 0 allows empty clients.
        draw: Class sizes `[C]` -> counts `[N, C]`, whose columns add up to them.
        rng: Which samples of a class go where.

    Raises:
        ConfigError: There are fewer samples than clients, or no draw met `min_size`.
    """
    if min_size > 0:
        check_enough(len(labels), num_clients)
    _, label_M = np.unique(labels, return_inverse=True)
    size_C = np.bincount(label_M)
    count_NC = large_enough(lambda: draw(size_C), min_size)
    return by_class_counts(label_M, count_NC, rng)


def by_class_counts(
    label_M: np.ndarray, count_NC: np.ndarray, rng: np.random.Generator
) -> ArrayPartition:
    """Return a partition that gives client `n` a random `count_NC[n, c]` samples of class `c`.

    Args:
        label_M: Class of each sample, 0..C-1.
        count_NC: Column sums are at most the class sizes; what is left over is unused.
        rng: Decides which samples of a class go where, and their order at the client.
    """
    num_clients, num_classes = count_NC.shape
    shuffled = rng.permutation(len(label_M))
    by_class = shuffled[np.argsort(label_M[shuffled], kind="stable")]
    start_C = offsets(np.bincount(label_M, minlength=num_classes))
    owner_M = np.full(len(label_M), -1, np.int64)
    for c in range(num_classes):
        owners = np.repeat(np.arange(num_clients), count_NC[:, c])
        owner_M[by_class[start_C[c] : start_C[c] + len(owners)]] = owners
    return by_owner(owner_M, num_clients, rng)


def offsets(sizes: np.ndarray) -> np.ndarray:
    """Return the start of each of consecutive blocks, and the end of the last, int64 `[N + 1]`."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def equal_sizes(num_samples: int, num_parts: int) -> np.ndarray:
    """Return `num_parts` sizes that differ by at most one, the larger ones first, int64.

    Example:
        >>> equal_sizes(10, 4).tolist()
        [3, 3, 2, 2]
    """
    each, left = divmod(num_samples, num_parts)
    return np.where(np.arange(num_parts) < left, each + 1, each).astype(np.int64)


def cut(share_NC: np.ndarray, size_C: np.ndarray) -> np.ndarray:
    """Cut `size_C[c]` samples of each class at the cumulative shares of the clients.

    Cut points are rounded to the nearest sample. Rounded down, as in much published code, they
    favour the last client: with many clients it alone would hold a sample of nearly every class.

    Args:
        share_NC: Not negative; each column sums to 1 up to rounding.
        size_C: Samples per class.

    Returns:
        `count_NC`, int64, with column sums exactly `size_C`.
    """
    edge_NC = np.rint(np.cumsum(share_NC, axis=0) * size_C).astype(np.int64)
    edge_NC[-1] = size_C
    # Rounding of the cumulative sum may step past the end by one unit in the last place.
    return np.diff(np.minimum(edge_NC, size_C), axis=0, prepend=0)


def normalise(weight_NC: np.ndarray) -> np.ndarray:
    """Scale each column to sum 1; a column of zeros (Dirichlet underflow) becomes uniform."""
    total_C = weight_NC.sum(axis=0)
    share_NC = np.full_like(weight_NC, 1 / len(weight_NC))
    np.divide(weight_NC, total_C, out=share_NC, where=total_C > 0)
    return share_NC


def large_enough(draw: Callable[[], np.ndarray], min_size: int) -> np.ndarray:
    """Repeat `draw() -> count_NC` until every client has `min_size` samples.

    Raises:
        ConfigError: No draw in a bounded number of tries does.
    """
    best = -1
    for _ in range(_TRIES):
        count_NC = draw()
        smallest = int(count_NC.sum(axis=1).min())
        if smallest >= min_size:
            return count_NC
        best = max(best, smallest)
    raise ConfigError(
        f"min_size: in {_TRIES} draws, no one gave each of the {len(count_NC)} clients at least"
        f" {min_size} samples; the best draw's smallest client had {best}."
        f" Use partition.min_size={best}, fewer clients (partition.num_clients), more even shares"
        " (a larger partition.alpha), or a scheme of even sizes (partition=fedau,"
        " partition=dirichlet_client)"
    )


def check_enough(num_samples: int, num_clients: int) -> None:
    """Refuse a population in which someone would hold nothing.

    Raises:
        ConfigError: There are more clients than samples.
    """
    if num_clients > num_samples:
        raise ConfigError(
            f"num_clients: {num_clients} is more than the {num_samples} train samples, and this"
            f" scheme gives every client its own; use partition.num_clients={num_samples} or"
            " less, or partition=resampled, where clients may share samples"
        )
