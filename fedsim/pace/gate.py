"""Which replies of a training exchange are used: the gate between admission and the strategy.

Replies are computed in an engine's order, chunk by chunk; they arrive in that of (s_k, k), their
simulated seconds and clients. Who is late depends on these alone: not on the engine, nor on its
chunks. s_k is exact as soon as k's reply is drawn and weighed, be it as long as others or not; of
those not drawn yet, what they receive and compute is known, and that their replies are no shorter
than the arrays that admission asks for. So a reply that is drawn is

    late    D < s_k, or m admitted replies that are drawn come before it
    used    fewer than m clients come before it, each not yet drawn taken at its earliest
    held    else: in memory, until one or the other holds

At most m replies are held, since the m + 1st is late; with a deadline alone, none. They are those
who will be late unless others fail, and those few of whom the bytes beside the arrays decide. Held
replies that are used follow the others, so that sums add up in another order; where all replies are
used, they pass as they came. Late clients are trained like all others: their work is done in vain,
as in the field.

Shapes: K clients of a chunk, A clients asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from fedsim.admission import AdmittedReplies
from fedsim.asynchronous import polynomial
from fedsim.errors import ConfigError, ResumeError
from fedsim.in_flight import STATE, InFlight, Landed, difference
from fedsim.pace.base import Hurried
from fedsim.records import NUM_EXAMPLES, Chunk, Params, moved
from fedsim.strategy import State

_UPDATE = "update/"


class Times(Protocol):
    """What knows how long clients are busy: `fedsim.footprint.Meter`."""

    def busy(
        self, replies: AdmittedReplies, clients: np.ndarray, unheard: int = 0
    ) -> np.ndarray | None:
        """Return their seconds, of those not drawn as if they sent `unheard` bytes."""


class Pace:
    """The pace of one run: its rules, and the replies that are still to come.

    Args:
        rules: The scenario's.
        times: How long clients are busy.
    """

    def __init__(self, rules: Hurried, times: Times) -> None:
        self.rules = rules
        self.times = times
        self.in_flight = InFlight()

    def gate(self, server_round: int, params: Params, now: float | None) -> Gate:
        """Return the gate of a training exchange that begins now, with this model.

        Raises:
            ConfigError: Nobody knows when that is, and late replies arrive by the clock.
        """
        if now is None and self.rules.late == "keep":
            raise ConfigError(
                "pace.late=keep: when late replies arrive cannot be told, since it is not known "
                "how long evaluations take; set evaluation.clients=none, or pace.late=drop; the "
                "run's log says why operations cannot be counted"
            )
        return Gate(self, server_round, params, now or 0.0)

    def state_dict(self) -> State:
        """Return all that the next round depends on."""
        return self.in_flight.state_dict() if self.rules.late == "keep" else {}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: The state is none of a pace that keeps late replies.
        """
        if self.rules.late != "keep":
            return
        if not set(state) >= STATE:
            raise ResumeError(
                f"late replies are kept, but the checkpoint holds none of {sorted(STATE)}; was the "
                "pace changed?"
            )
        self.in_flight.load_state_dict(state)


@dataclass
class Gate:
    """One training exchange.

    Attributes:
        begins: When it has begun, in seconds since the start of the run; 0 where nobody knows.
        closes: When it has closed; known once its replies have been drawn.
        late: Whose replies came too late.
        arrived: Whose kept replies came, in the order of their arrival.
    """

    pace: Pace
    server_round: int
    params: Params
    begins: float

    def __post_init__(self) -> None:
        self.closes = self.begins
        self.late: set[int] = set()
        self.arrived: list[int] = []
        self._asked_A, self._came_A = np.arange(0), np.zeros(0, bool)
        self._seconds_A, self._wanted, self._least = np.zeros(0), 0, 0
        self._kept: list[tuple[int, float, Params]] = []
        self._landed: list[Landed] = []

    def on_time(self, chunks: Iterable[Chunk], replies: AdmittedReplies) -> Iterator[Chunk]:
        """Yield what is used of admitted replies, as they are drawn."""
        held: list[Chunk] = []
        for chunk in chunks:
            if not len(chunk):
                yield chunk
                continue
            self._see(replies, chunk.client_index)
            used_K, late_K = self._fates(chunk.client_index)
            self._turn_away(chunk, late_K)
            held = [part for part in map(self._not_late, held) if len(part)]
            if not (used_K | late_K).all():
                held.append(_copy(chunk.rows(~(used_K | late_K))))
            if used_K.any():
                yield chunk.rows(used_K)
        self._close(replies)
        for part in map(self._not_late, held):
            if len(part):
                yield part

    def pick(self, clients: np.ndarray, replies: AdmittedReplies) -> np.ndarray:
        """Return which of all admitted replies are used, bool `[K]`."""
        if len(clients):
            self._see(replies, clients)
        self._close(replies)
        if not len(clients):
            return np.zeros(0, bool)
        used_K, late_K = self._fates(clients)
        self.late.update(clients[late_K].tolist())
        return used_K

    def arrivals(self) -> Iterator[Chunk]:
        """Yield the kept replies that have arrived, on this round's model, with their weights."""
        if not self._landed:
            return
        tau_K = [self.server_round - reply.started for reply in self._landed]
        factor_K = np.array([polynomial(tau, self.pace.rules.discount) for tau in tau_K])
        weight_K = np.array([float(reply.arrays[NUM_EXAMPLES]) for reply in self._landed])
        models = [self._onto_model(reply.arrays) for reply in self._landed]
        yield Chunk(
            client_index=np.array([reply.client for reply in self._landed], np.int64),
            arrays={name: torch.stack([model[name] for model in models]) for name in self.params},
            metrics={NUM_EXAMPLES: weight_K * factor_K},
            discount=factor_K,
        )

    # --- who is late -------------------------------------------------------------------------

    def _see(self, replies: AdmittedReplies, clients: np.ndarray) -> None:
        """Note when the replies of some clients come."""
        sizes = [replies.received_bytes[client] for client in clients.tolist()]
        if not len(self._asked_A):
            self._asked_A = replies.clients
            self._came_A = np.zeros(len(self._asked_A), bool)
            self._wanted = self.pace.rules.wanted(len(self._asked_A))
            self._least = replies.least_bytes
            self._seconds_A = self._busy(replies, self._asked_A)
        if min(sizes) < self._least:
            raise RuntimeError(
                f"good replies of {min(sizes)} bytes; at least {self._least} were due"
            )
        rows_K = np.searchsorted(self._asked_A, clients)
        self._seconds_A[rows_K] = self._busy(replies, clients)
        self._came_A[rows_K] = True
        self._rank(np.isin(self._asked_A, list(replies.failed)))

    def _rank(self, gone_A: np.ndarray) -> None:
        """Put all in the order in which they come, `gone_A` last: they never do."""
        self._seconds_A[gone_A & ~self._came_A] = math.inf
        order_A = np.lexsort((self._asked_A, self._seconds_A))
        self._before_A = np.empty(len(order_A), np.int64)
        self._before_A[order_A] = np.arange(len(order_A))
        came_A = self._came_A[order_A]
        self._came_before_A = np.empty(len(order_A), np.int64)
        self._came_before_A[order_A] = np.cumsum(came_A) - came_A

    def _fates(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return whose replies are used, and whose are late, as far as can be told; bool `[K]`."""
        rows_K = np.searchsorted(self._asked_A, clients)
        late_K = self._seconds_A[rows_K] > self.pace.rules.deadline_s
        late_K |= self._came_before_A[rows_K] >= self._wanted
        used_K = ~late_K & (self._before_A[rows_K] < self._wanted)
        return used_K, late_K

    def _busy(self, replies: AdmittedReplies, clients: np.ndarray) -> np.ndarray:
        seconds_K = self.pace.times.busy(replies, clients, self._least)
        if seconds_K is None:
            raise ConfigError(
                "pace: who is late cannot be told, since it is not known how long clients are "
                "busy; set pace=patient, or see in the run's log why operations cannot be counted"
            )
        return seconds_K

    # --- what becomes of them ----------------------------------------------------------------

    def _not_late(self, chunk: Chunk) -> Chunk:
        """Return what is left of held replies without those that are late."""
        _, late_K = self._fates(chunk.client_index)
        self._turn_away(chunk, late_K)
        return chunk.rows(~late_K)

    def _turn_away(self, chunk: Chunk, late_K: np.ndarray) -> None:
        self.late.update(chunk.client_index[late_K].tolist())
        if self.pace.rules.late == "drop":
            return
        for row in np.flatnonzero(late_K):
            client = int(chunk.client_index[row])
            held = {
                _UPDATE + name: difference(rows[row], self.params[name])
                for name, rows in chunk.arrays.items()
            }
            weight = float(chunk.num_examples[row])
            held[NUM_EXAMPLES] = torch.tensor(weight, dtype=torch.float64)
            seconds = float(self._seconds_A[np.searchsorted(self._asked_A, client)])
            self._kept.append((client, seconds, held))

    def _onto_model(self, held: Params) -> Params:
        update = {name: held[_UPDATE + name].to(x.device) for name, x in self.params.items()}
        return moved(self.params, update, 1.0)

    def _close(self, replies: AdmittedReplies) -> None:
        """Tell when the exchange closes, now that nobody else comes; take in what has arrived."""
        self._rank(~self._came_A)
        sent = np.array(sorted(k for k, size in replies.received_bytes.items() if size), np.int64)
        flight, deadline_s = self.pace.in_flight, self.pace.rules.deadline_s
        if len(sent):
            used_K, _ = self._fates(self._asked_A)
            used_K &= self._came_A
            enough = len(used_K) > 0 and used_K.sum() >= self._wanted
            seconds_K = self._seconds_A[used_K] if enough else self._busy(replies, sent)
            self.closes = self.begins + min(deadline_s, float(seconds_K.max()))
        elif len(flight):
            self.closes = max(self.begins, min(self.begins + deadline_s, flight.next_time))
        while flight.next_time <= self.closes:
            self._landed.append(flight.pop())
        self.arrived = [reply.client for reply in self._landed]
        for client, seconds, held in self._kept:
            flight.add(client, self.begins + seconds, self.server_round, held)


def _copy(chunk: Chunk) -> Chunk:
    """Return a chunk in memory of its own; an engine may write over what it gave."""
    return replace(
        chunk,
        arrays={name: rows.clone() for name, rows in chunk.arrays.items()},
        client_arrays={name: rows.clone() for name, rows in chunk.client_arrays.items()},
    )
