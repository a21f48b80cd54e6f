"""Which clients stand for a large population in a picture; free of heavy imports."""

from __future__ import annotations

import numpy as np

MOST_CLIENTS = 200
"""More columns than this are too thin to read: evenly spaced clients stand for all."""


def shown_clients(num_clients: int) -> np.ndarray:
    """Return which clients a picture of a population shows: all, or 200 evenly spaced, int64.

    Example:
        >>> shown_clients(1000)[:3].tolist(), len(shown_clients(1000)), len(shown_clients(7))
        ([0, 5, 10], 200, 7)
    """
    count = min(num_clients, MOST_CLIENTS)
    return np.arange(count, dtype=np.int64) * num_clients // count
