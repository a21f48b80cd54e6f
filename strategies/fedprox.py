"""FedProx (Li et al., MLSys 2020, arXiv:1812.06127, Algorithm 2).

    client k:  y_k ← x; local SGD steps on F_k(y) + (μ/2) ‖y − x‖²
    server:    x ← x + η · Σ_k w_k (y_k − x) / Σ_k w_k        over the clients that replied

μ = 0 is FedAvg.

Differs from the paper: the local problem is solved by a number of SGD steps, not to a precision
γ_k; weights are sample counts (`examples`), where the paper draws clients by their share of the
samples and takes the plain mean (`uniform`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fedsim.client.half import ClientHalf
from fedsim.client.proximal import Proximal
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class FedProx(FedsimStrategy):
    """FedAvg whose clients stay near the global model.

    Attributes:
        mu: μ; the paper's grid is 0.001, 0.01, 0.1, 1.
        weighting: `examples` or `uniform`.
        server_lr: η.
    """

    of_mean_only = True

    mu: Annotated[float, Range(ge=0)] = 0.1
    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    @property
    def client_half(self) -> ClientHalf:
        return Proximal(self.mu)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.weights(self.weighting))
        return total.mean(self.server_lr)
