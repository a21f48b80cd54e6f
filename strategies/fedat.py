"""FedAT (Chai et al., SC 2021, arXiv:2010.05958, Algorithms 1 and 2): asynchronous tiers.

Clients are sorted by how long they take to receive, train and send, and cut into M tiers of equal
numbers; tier 1 is the fastest. Each tier trains in rounds of its own, as FedAvg does, and waits
for none of the others:

    client k of tier m:  y_k ← x; local SGD steps on F_k(y) + (λ/2) ‖y − x‖²
    tier m, as its last reply is in:   x_m ← x + Σ_k w_k (y_k − x) / Σ_k w_k,   T_m ← T_m + 1
    server, at once:     x ← Σ_m (T_{M+1−m} / T) x_m,        T = Σ_m T_m

where the x on the right is the model that the tier began with. Tier m is weighted by how often its
mirror has come, so that slow tiers, which come seldom, are not outweighed. All x_m begin as the
initial model: until the slowest tier has come once, the fastest has no weight. One round of the
loop is one server update; a tier that has come begins again at once, in the next round, with
`clients_per_tier` drawn among those of its clients that take part. A tier with no reply is left
out until the server's next update; a reply that is rejected is not waited for. M = 1 is FedProx,
and FedAvg with λ = 0, on the same clock.

Held are 2 M models, in memory and in every checkpoint.

Shapes: N clients, M tiers, `[M, ...]` one row per tier; `[K, ...]` one row per client of a chunk.

Differs from the paper: its polyline encoding of messages is left out (`compression=` has others).
Latencies are those of the scenario's devices for a whole round of a client's work, where the paper
measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.asynchronous import AsynchronousStrategy
from fedsim.client.half import ClientHalf
from fedsim.client.proximal import Proximal
from fedsim.errors import ConfigError, ResumeError
from fedsim.in_flight import HELD, STATE, InFlight
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum, moved
from fedsim.strategy import Round, State

IN = "tiers/"
_TIMES = {"now", "counts", *STATE}


@dataclass(kw_only=True)
class FedAT(AsynchronousStrategy):
    """Tiers of clients that are about as fast, synchronous within, asynchronous among them.

    Attributes:
        tiers: M; the paper uses 5.
        clients_per_tier: How many clients a tier asks at a time; null for all that take part.
        lam: λ.
        weighting: `examples` (the paper) or `uniform`, the w_k.
    """

    tiers: Annotated[int, Range(ge=1)] = 5
    clients_per_tier: Annotated[int, Range(ge=1)] | None = 10
    lam: Annotated[float, Range(ge=0)] = 0.4
    weighting: Literal["examples", "uniform"] = "examples"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tier_N: np.ndarray | None = None
        self._count_M = np.zeros(self.tiers, np.int64)
        self._in: list[Params] = []  # x_m, once there is a first model
        self._coming = InFlight()  # tiers at work, and what they will come with

    @property
    def client_half(self) -> ClientHalf:
        return Proximal(self.lam) if self.lam else ClientHalf()

    # --- who is in which tier ----------------------------------------------------------------

    @property
    def tier_N(self) -> np.ndarray:
        """Each client's tier, `[N]`, from 0, the fastest; of equals, by client index.

        Raises:
            ConfigError: There are fewer clients than tiers, or nobody knows how fast they are.
        """
        if self._tier_N is None:
            order = np.argsort(self.latencies, kind="stable")
            if len(order) < self.tiers:
                raise ConfigError(
                    f"strategy.tiers: {self.tiers} tiers of {len(order)} clients; allowed: 1 to "
                    f"{len(order)}"
                )
            self._tier_N = np.empty(len(order), np.int64)
            for tier, members in enumerate(np.array_split(order, self.tiers)):
                self._tier_N[members] = tier
        return self._tier_N

    @property
    def anybody_busy(self) -> bool:
        """See `AsynchronousStrategy.anybody_busy`; of tiers."""
        return len(self._coming) > 0

    def starts(self, rounds: int) -> int:
        """See `AsynchronousStrategy.starts`; no tier asks more at a time than the largest."""
        sizes = np.sort(np.bincount(self.tier_N))
        each = sizes if self.clients_per_tier is None else np.minimum(sizes, self.clients_per_tier)
        return int(each.sum() + (rounds - 1) * each.max())

    def chosen(self, server_round: int, offered: np.ndarray) -> np.ndarray:
        """See `FedsimStrategy.chosen`."""
        asked = []
        drawn = self.drawn(server_round, offered)
        for tier in range(self.tiers):
            if tier not in self._coming:
                asked.append(drawn[self.tier_N[drawn] == tier][: self.clients_per_tier])
        return np.sort(np.concatenate([drawn[:0], *asked]))

    # --- the server --------------------------------------------------------------------------

    def aggregate(self, context: Round, replies: Replies) -> Params:
        params = context.params
        if not self._in:
            self._in = [{n: x.clone() for n, x in params.items()} for _ in range(self.tiers)]
        self._begin(params, replies)
        if not len(self._coming):
            return params
        tier = self._coming.pop()
        self._now, self._in[tier.client] = tier.time, tier.arrays
        self._count_M[tier.client] += 1
        return self.weighted_average(params)

    def _begin(self, params: Params, replies: Replies) -> None:
        """Compute what tiers that begin now will come with, and when."""
        sums: dict[int, UpdateSum] = {}
        until: dict[int, float] = {}
        for chunk in replies.chunks():
            if not len(chunk):
                continue
            seconds_K, tier_K = self.seconds(chunk), self.tier_N[chunk.client_index]
            for tier in np.unique(tier_K).tolist():
                mine = tier_K == tier
                rows = chunk.rows(mine)
                total = sums.setdefault(tier, UpdateSum(params))
                total.add(rows.arrays, rows.weights(self.weighting))
                until[tier] = max(until.get(tier, 0.0), float(seconds_K[mine].max()))
        for tier, total in sums.items():
            begun = int(self._count_M.sum())
            self._coming.add(tier, self._now + until[tier], begun, total.mean(1.0))

    def weighted_average(self, params: Params) -> Params:
        """Return Σ_m (T_{M+1−m} / T) x_m, in float64 and in the order of m."""
        weight_M = self._count_M[::-1] / self._count_M.sum()
        zero = {name: torch.zeros_like(x) for name, x in params.items()}
        sums = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in params.items()}
        for weight, model in zip(weight_M.tolist(), self._in, strict=True):
            for name, total in sums.items():
                total.add_(model[name].to(total), alpha=weight)
        return moved(zero, sums, 1.0)

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> State:
        if not self._in:
            return {}
        return {
            "now": self._now,
            "counts": self._count_M.copy(),
            **{IN + n: torch.stack([x[n] for x in self._in]) for n in self._in[0]},
            **self._coming.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        if not state:
            return
        odd = sorted(key for key in state if key not in _TIMES and not key.startswith((IN, HELD)))
        if odd or not set(state) >= _TIMES or len(np.asarray(state["counts"])) != self.tiers:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)[:8]}, which is not that of "
                f"FedAT with {self.tiers} tiers; was the strategy changed?"
            )
        self._now, self._count_M = float(state["now"]), np.asarray(state["counts"]).copy()
        self._coming.load_state_dict(state)
        stacked = {
            name.removeprefix(IN): torch.as_tensor(value)
            for name, value in state.items()
            if name.startswith(IN)
        }
        self._in = [{n: rows[m].clone() for n, rows in stacked.items()} for m in range(self.tiers)]
