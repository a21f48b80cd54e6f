"""FedBuff (Nguyen et al., AISTATS 2022, arXiv:2106.06639, Algorithm 1).

    client k:  y_k ← x_v, the model as k starts; local SGD steps on y_k; sends Δ_k = y_k − x_v
    server:    once K replies are in,
               x ← x + η · (1/K) · Σ_k s(τ_k) Δ_k,      s(τ) = 1 / √(1 + τ)

τ_k is the number of models that the server has made since k started. One round of the loop is one
server update; see `fedsim.asynchronous` for who starts when. K = 1 is FedAsync with
`update: delta`, `staleness: polynomial`, a = 1/2 and α = η.

Differs from the paper: where fewer than K clients can be in flight, a round takes those that are,
and K in the mean is their number. There is no server momentum, which the paper's experiments have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fedsim.asynchronous import Arrival, ClientsInFlight, WeightedSum, polynomial
from fedsim.parts import Range
from fedsim.records import Params


@dataclass(kw_only=True)
class FedBuff(ClientsInFlight):
    """A buffer of replies moves the model, each less the staler it is.

    Attributes:
        buffer: K; the paper uses 10.
        server_lr: η.
        discount: Whether staleness counts: s as above, or 1.
    """

    buffer: Annotated[int, Range(ge=1)] = 10
    server_lr: Annotated[float, Range(gt=0)] = 1.0
    discount: bool = True

    @property
    def takes(self) -> int:
        return self.buffer

    @property
    def holds_updates(self) -> bool:
        return True

    def combine(self, params: Params, arrivals: Sequence[Arrival]) -> Params:
        total = WeightedSum(params)
        for reply in arrivals:
            total.add(reply.arrays, polynomial(reply.staleness, 0.5) if self.discount else 1.0)
        return total.step(self.server_lr / len(arrivals))
