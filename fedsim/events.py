"""A queue of events in simulated time: earliest first; at one time, by client index.

A client is at most once in it. The order depends on nothing but times and indices, so that a queue
restored from its pairs goes on as the one that they were taken from.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable


class EventQueue:
    """When which clients finish.

    Args:
        events: (seconds, client) pairs to begin with, in any order.
    """

    def __init__(self, events: Iterable[tuple[float, int]] = ()) -> None:
        self._heap: list[tuple[float, int]] = []
        self._clients: set[int] = set()
        for time, client in events:
            self.push(time, client)

    def __len__(self) -> int:
        return len(self._heap)

    def __contains__(self, client: int) -> bool:
        return client in self._clients

    def push(self, time: float, client: int) -> None:
        """Add an event.

        Raises:
            ValueError: The time is none, or the client has an event already.
        """
        if not math.isfinite(time):
            raise ValueError(f"client {client} would finish at {time} s")
        if client in self._clients:
            raise ValueError(f"client {client} is busy already")
        heapq.heappush(self._heap, (time, client))
        self._clients.add(client)

    def pop(self) -> tuple[float, int]:
        """Remove and return the earliest event."""
        time, client = heapq.heappop(self._heap)
        self._clients.remove(client)
        return time, client

    def pairs(self) -> list[tuple[float, int]]:
        """Return all events, in their order."""
        return sorted(self._heap)
