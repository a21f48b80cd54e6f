"""FedAU (Wang & Ji, ICLR 2024, arXiv:2306.03401, Algorithms 1 and 2).

    client k:  y_k ← x; I local SGD steps on y_k
    server:    x ← x + η · (1/N) · Σ_{k active} ω_k (y_k − x)         divided by all N clients
    weights:   ω_k is the mean length of the intervals between k's participations, each cut at K;
               ω_k = 1 until the first interval has closed

An interval closed by the current participation counts only from the next round. State is O(1) per
client and kept lazily: the round of the last participation (L), the number of closed intervals
(M) and their mean (ω). On contact after g = r − L rounds, ⌊(g−1)/K⌋ intervals of length K have
closed meanwhile, ω is read, and the rest of the gap (1..K rounds) closes now.

Shapes: `_N` per client of the population, `_K` per client of a chunk of replies.

Differs from the paper: nothing in the maths. A client that was asked but whose reply was not
admitted counts as absent, since the server cannot tell the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.errors import ResumeError
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round, State


@dataclass(kw_only=True)
class FedAU(FedsimStrategy):
    """Averaging with participation weights estimated online.

    Attributes:
        cutoff: K, rounds; null for infinity. The paper's code uses 100000 and 50.
        server_lr: η.
    """

    cutoff: Annotated[int, Range(ge=1)] | None = None
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Zeros, in all three, for who has never taken part: untouched memory costs nothing.
        self._last_N = np.zeros(0, np.int64)
        self._closed_N = np.zeros(0, np.int64)
        self._mean_N = np.zeros(0, np.float64)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        self._grow(context.num_clients)
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, self._participate(chunk.client_index, context.server_round))
        return total.step(self.server_lr / context.num_clients)

    def weights(self, server_round: int) -> np.ndarray:
        """Return ω as it would be read in a round (1, 2, ...), float64 `[N]`."""
        mean_N, _ = self._cut(slice(None), server_round)
        return mean_N

    def _participate(self, clients: np.ndarray, server_round: int) -> np.ndarray:
        """Return the weights of this round's participants, then close their intervals."""
        mean_K, closed_K = self._cut(clients, server_round)
        gap_K = server_round - self._last_N[clients]
        rest_K = gap_K - (closed_K - self._closed_N[clients]) * (self.cutoff or 0)
        self._mean_N[clients] = (closed_K * mean_K + rest_K) / (closed_K + 1)
        self._closed_N[clients] = closed_K + 1
        self._last_N[clients] = server_round
        return mean_K

    def _cut(self, clients: np.ndarray | slice, server_round: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (ω, M) after the intervals that the cutoff has closed before this round."""
        closed = self._closed_N[clients].copy()
        mean = np.where(closed > 0, self._mean_N[clients], 1.0)
        if self.cutoff is None:
            return mean, closed
        extra = np.maximum(server_round - self._last_N[clients] - 1, 0) // self.cutoff
        cut = extra > 0
        total = closed[cut] * mean[cut] + extra[cut] * self.cutoff
        closed[cut] += extra[cut]
        mean[cut] = total / closed[cut]
        return mean, closed

    def _grow(self, num_clients: int) -> None:
        """Make room for clients that were not there before; outside simulation, nodes may join."""
        more = num_clients - len(self._last_N)
        if not more:
            return
        if more < 0:
            raise ResumeError(
                f"FedAU's state is of {len(self._last_N)} clients, but there are {num_clients}; "
                "was the partition changed?"
            )
        self._last_N = _longer(self._last_N, num_clients)
        self._closed_N = _longer(self._closed_N, num_clients)
        self._mean_N = _longer(self._mean_N, num_clients)

    def state_dict(self) -> State:
        seen = np.flatnonzero(self._closed_N > 0)  # so that a checkpoint costs what they do
        return {
            "clients": seen,
            "last": self._last_N[seen],
            "closed": self._closed_N[seen],
            "mean": self._mean_N[seen],
        }

    def load_state_dict(self, state: State) -> None:
        if not {"last", "closed", "mean"} <= set(state):
            raise ResumeError(
                f"FedAU's state is last, closed, mean; the checkpoint has {sorted(state)}"
            )
        last = np.asarray(state["last"])
        seen = np.asarray(state.get("clients", np.arange(len(last))))
        size = int(seen.max(initial=-1)) + 1
        self._last_N, self._closed_N = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._mean_N = np.zeros(size)
        self._last_N[seen] = last
        self._closed_N[seen] = np.asarray(state["closed"])
        self._mean_N[seen] = np.asarray(state["mean"])


def _longer(array: np.ndarray, size: int) -> np.ndarray:
    longer = np.zeros(size, array.dtype)
    longer[: len(array)] = array
    return longer
