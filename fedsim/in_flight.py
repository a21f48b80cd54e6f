"""Replies that have been computed and reach the server later: held until their simulated time.

A reply is computed in the round in which its client starts, since it depends on that round's model
alone; what is held of it lies here, in memory and in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.events import EventQueue
from fedsim.records import Params
from fedsim.strategy import State

HELD = "held/"
STATE = frozenset({"clients", "arrive", "started"})
"""What `InFlight.state_dict` always has; beside these, what is held of the replies."""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """A reply that has reached the server.

    Attributes:
        time: When it did.
        client: Whose it is.
        started: The number that it was held under, of a round or of a model.
        arrays: What was held of it.
    """

    time: float
    client: int
    started: int
    arrays: Params


class InFlight:
    """Clients at work, when each of them is done, and what their replies are."""

    def __init__(self) -> None:
        self._queue = EventQueue()
        self._held: dict[int, tuple[int, Params]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, client: int) -> bool:
        return client in self._queue

    @property
    def clients(self) -> np.ndarray:
        """Who is in flight, sorted int64."""
        return np.array(sorted(self._held), np.int64)

    @property
    def next_time(self) -> float:
        """When the next reply arrives; infinity if there is none."""
        return self._queue.pairs()[0][0] if self._queue else float("inf")

    def add(self, client: int, time: float, started: int, arrays: Params) -> None:
        """Hold a reply until a time.

        Raises:
            ValueError: The time is none, or the client is in flight already.
        """
        self._queue.push(time, client)
        self._held[client] = started, arrays

    def pop(self) -> Landed:
        """Remove and return the earliest reply; at one time, by client index."""
        time, client = self._queue.pop()
        started, arrays = self._held.pop(client)
        return Landed(time=time, client=client, started=started, arrays=arrays)

    def state_dict(self) -> State:
        """Return all of it as plain arrays, in the order of arrival."""
        pairs = self._queue.pairs()
        clients = [client for _, client in pairs]
        held = [self._held[client] for client in clients]
        names = held[0][1] if held else {}
        return {
            "clients": np.array(clients, np.int64),
            "arrive": np.array([time for time, _ in pairs], np.float64),
            "started": np.array([started for started, _ in held], np.int64),
            **{HELD + n: torch.stack([arrays[n] for _, arrays in held]) for n in names},
        }

    def load_state_dict(self, state: Mapping[str, Tensor | np.ndarray | int | float]) -> None:
        """Restore what `state_dict` returned; other names are left alone."""
        self._queue, self._held = EventQueue(), {}
        columns = [np.asarray(state[name]).tolist() for name in ("clients", "arrive", "started")]
        held = {
            name.removeprefix(HELD): torch.as_tensor(rows)
            for name, rows in state.items()
            if name.startswith(HELD)
        }
        for row, (client, time, started) in enumerate(zip(*columns, strict=True)):
            self.add(client, time, started, {n: rows[row].clone() for n, rows in held.items()})


def difference(y: Tensor, x: Tensor) -> Tensor:
    """Return y − x; of integers too, as float64."""
    return y - x if x.is_floating_point() else y.double() - x.double()
