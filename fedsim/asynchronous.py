"""What asynchronous strategies share: the virtual clock, and clients in flight on it.

`AsynchronousStrategy` keeps the time, and no more. In `ClientsInFlight`, `concurrency` clients are
busy at any time. One that has finished is replaced at once by another, which starts from the model
as it is then. After `buffer` replies the server makes a new model: that is one round of the loop.
Replies are computed in the round in which their clients start, since they depend on that round's
model alone, and are held until the simulated time at which they arrive.

Who starts in a round is known before anybody is asked: all free places are taken, and of the
`buffer` arrivals that the round ends with, each but the last frees one place while its model is in
force. So free + buffer − 1 clients are asked, in the order of a keyed draw among those that take
part and were not in flight when the round began; if one fails, the next starts in its place. Where
fewer clients are in flight than the buffer takes, a round ends with those that are, and where none
is, the model and the clock stay.

Held are `concurrency` updates, in memory and in every checkpoint.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ConfigError, ResumeError
from fedsim.in_flight import STATE, InFlight, Landed, difference
from fedsim.parts import Range
from fedsim.records import BUSY, Chunk, Params, Replies, moved
from fedsim.strategy import FedsimStrategy, Round, State

_STATE = {*STATE, "version", "now"}


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A reply that reaches the server.

    Attributes:
        client: Whose it is.
        staleness: τ, how many models the server has made since the client started.
        arrays: What was held of it; see `AsynchronousStrategy.holds_updates`.
    """

    client: int
    staleness: int
    arrays: Params


@dataclass(kw_only=True)
class AsynchronousStrategy(FedsimStrategy):
    """Base of strategies whose server does not wait for everybody, and which keep the time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._now = 0.0

    @property
    def simulated_seconds(self) -> float:
        """When the latest model was made."""
        return self._now

    @property
    @abc.abstractmethod
    def anybody_busy(self) -> bool:
        """Whether any client is at work."""

    def wait_until(self, seconds: float) -> None:
        """Let time pass in which nobody is busy."""
        self._now = seconds

    @abc.abstractmethod
    def starts(self, rounds: int) -> int:
        """Return how many clients start in a run of some rounds, if there are always idle ones."""

    def drawn(self, server_round: int, clients: np.ndarray) -> np.ndarray:
        """Return clients in the order of a round's keyed draw."""
        seed = 0 if self.federation is None else self.federation.seed
        rng = seeds.rng(seed, server_round, seeds.SERVER, "who-starts")
        return rng.permutation(clients)

    def seconds(self, chunk: Chunk) -> np.ndarray:
        """Return how long the clients of some replies were busy, float64 `[K]`.

        Raises:
            ConfigError: Nobody knows.
        """
        if BUSY not in chunk.metrics:
            raise ConfigError(
                f"{type(self).__name__} needs to know how long each client is busy; set "
                "devices=unequal (or equal); if that is set, the run's log says why operations "
                "cannot be counted"
            )
        return chunk.metrics[BUSY]


@dataclass(kw_only=True)
class ClientsInFlight(AsynchronousStrategy):
    """Base of strategies whose server uses each client's reply as it arrives.

    Attributes:
        concurrency: How many clients are busy at any time.
    """

    concurrency: Annotated[int, Range(ge=1)] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._flight = InFlight()
        self._version = 0
        self._order = np.arange(0)

    # --- what an algorithm says --------------------------------------------------------------

    @property
    def takes(self) -> int:
        """How many replies make a new model."""
        return 1

    @property
    @abc.abstractmethod
    def holds_updates(self) -> bool:
        """Whether y_k − (the model that k started from) is held, or y_k itself."""

    @abc.abstractmethod
    def combine(self, params: Params, arrivals: Sequence[Arrival]) -> Params:
        """Return the next model, of one reply or more, in the order of their arrival."""

    # --- the clock ---------------------------------------------------------------------------

    @property
    def anybody_busy(self) -> bool:
        """See `AsynchronousStrategy.anybody_busy`."""
        return len(self._flight) > 0

    def starts(self, rounds: int) -> int:
        """See `AsynchronousStrategy.starts`."""
        return self.concurrency + self.takes * rounds - 1

    def chosen(self, server_round: int, offered: np.ndarray) -> np.ndarray:
        """See `FedsimStrategy.chosen`."""
        idle = offered[[int(client) not in self._flight for client in offered]]
        wanted = max(0, self.concurrency - len(self._flight)) + self.takes - 1
        self._order = self.drawn(server_round, idle)[:wanted]
        return np.sort(self._order)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        came = self._came(context.params, replies)
        waiting = [client for client in self._order.tolist() if client in came]
        arrived: list[Landed] = []
        while True:
            while waiting and len(self._flight) < self.concurrency:
                client = waiting.pop(0)
                busy_s, arrays = came.pop(client)
                self._flight.add(client, self._now + busy_s, self._version, arrays)
            if not self._flight:
                break
            arrived.append(self._flight.pop())
            self._now = arrived[-1].time
            if len(arrived) == self.takes:
                break
        if not arrived:
            return context.params
        params = self.combine(context.params, [self._arrival(reply) for reply in arrived])
        self._version += 1
        return params

    def _came(self, params: Params, replies: Replies) -> dict[int, tuple[float, Params]]:
        """Return how long each client is busy, and what is held of its reply."""
        came: dict[int, tuple[float, Params]] = {}
        for chunk in replies.chunks():
            seconds_K = self.seconds(chunk).tolist()
            for row, client in enumerate(chunk.client_index.tolist()):
                arrays = {name: rows[row] for name, rows in chunk.arrays.items()}
                held = {
                    name: difference(y, params[name]) if self.holds_updates else y.clone()
                    for name, y in arrays.items()
                }
                came[client] = seconds_K[row], held
        return came

    def _arrival(self, reply: Landed) -> Arrival:
        staleness = self._version - reply.started
        return Arrival(client=reply.client, staleness=staleness, arrays=reply.arrays)

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> State:
        return {"now": self._now, "version": self._version, **self._flight.state_dict()}

    def load_state_dict(self, state: State) -> None:
        if not set(state) >= _STATE:
            raise ResumeError(
                f"the state of {type(self).__name__} is {sorted(_STATE)} and what is held, but the "
                f"checkpoint has {sorted(state)}; was the strategy changed?"
            )
        self._now, self._version = float(state["now"]), int(state["version"])
        self._flight.load_state_dict(state)


class WeightedSum:
    """Σ w_k Δ_k in float64, one update at a time, so that it depends on their order alone.

    Args:
        params: x, the model to be moved.
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.sums = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in params.items()}

    def add(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Add one update."""
        for name, total in self.sums.items():
            total.add_(update[name].to(total), alpha=weight)

    def add_model(self, model: Mapping[str, Tensor], weight: float) -> None:
        """Add the update from x to a model."""
        self.add({n: difference(model[n].to(x.device), x) for n, x in self.params.items()}, weight)

    def step(self, scale: float) -> Params:
        """Return x + scale · Σ w_k Δ_k in the dtypes of the model; integers are rounded."""
        return moved(self.params, self.sums, scale)


def polynomial(staleness: int, exponent: float) -> float:
    """Return (1 + τ)^(−a)."""
    return float((1.0 + staleness) ** -exponent)
