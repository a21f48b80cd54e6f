"""FedAsync (Xie, Koyejo, Gupta 2019, arXiv:1903.03934, Algorithm 1).

    client k:  y_k ← x_v, the model as k starts; local SGD steps on F_k(y) + (μ/2) ‖y − x_v‖²
    server:    as soon as one reply is in, α_τ = α · s(τ), and
               x ← (1 − α_τ) x + α_τ y_k                (`update: model`, the paper)
               x ← x + α_τ (y_k − x_v)                  (`update: delta`)

τ is the number of models that the server has made since k started, and s is

    constant     1
    polynomial   (1 + τ)^(−a)
    hinge        1 where τ ≤ b, else 1 / (a (τ − b) + 1)

One round of the loop is one server update; see `fedsim.asynchronous` for who starts when.

Differs from the paper: τ counts from 0, a reply to the current model, as in FedBuff; the paper's
t − τ is between epochs. `update: delta` is not in the paper: FedBuff with a buffer of 1 is FedAsync
with it, `staleness: polynomial` and a = 1/2. A new client starts as soon as another has finished,
where the paper's scheduler triggers at times of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fedsim.asynchronous import Arrival, ClientsInFlight, WeightedSum, polynomial
from fedsim.client.half import ClientHalf
from fedsim.client.proximal import Proximal
from fedsim.parts import Range
from fedsim.records import Params


@dataclass(kw_only=True)
class FedAsync(ClientsInFlight):
    """Every reply moves the model, less the staler it is.

    Attributes:
        alpha: α.
        staleness: s.
        a, b: Its parameters; `polynomial` reads a alone, `constant` neither.
        update: Mix the models, or add the update to a model that has moved on.
        mu: μ; 0 is the paper's Option I.
    """

    alpha: Annotated[float, Range(gt=0, le=1)] = 0.6
    staleness: Literal["constant", "hinge", "polynomial"] = "polynomial"
    a: Annotated[float, Range(ge=0)] = 0.5
    b: Annotated[float, Range(ge=0)] = 4.0
    update: Literal["model", "delta"] = "model"
    mu: Annotated[float, Range(ge=0)] = 0.0

    @property
    def client_half(self) -> ClientHalf:
        return Proximal(self.mu) if self.mu else ClientHalf()

    @property
    def holds_updates(self) -> bool:
        return self.update == "delta"

    def discount(self, tau: int) -> float:
        """Return s(τ)."""
        if self.staleness == "polynomial":
            return polynomial(tau, self.a)
        if self.staleness == "hinge" and tau > self.b:
            return 1.0 / (self.a * (tau - self.b) + 1.0)
        return 1.0

    def combine(self, params: Params, arrivals: Sequence[Arrival]) -> Params:
        total = WeightedSum(params)
        (reply,) = arrivals
        add = total.add if self.holds_updates else total.add_model
        add(reply.arrays, self.discount(reply.staleness))
        return total.step(self.alpha)
