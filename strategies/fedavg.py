"""FedAvg (McMahan et al., AISTATS 2017, arXiv:1602.05629, Algorithm 1).

    client k:  y_k ← x; local SGD steps on y_k
    server:    x ← x + η · Σ_k w_k (y_k − x) / Σ_k w_k        over the clients that replied

w_k is the client's number of samples (`weighting: examples`, the paper), or 1 (`uniform`, the
"average participating" baseline of FedAU). η = 1 is the paper.

Differs from the paper: weights are normalised over the replies, not over the clients asked; a
round without replies leaves the model unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class FedAvg(FedsimStrategy):
    """Weighted mean of the participants' updates.

    Attributes:
        weighting: `examples` or `uniform`.
        server_lr: η.
    """

    of_mean_only = True

    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.weights(self.weighting))
        if not total.count:
            return context.params
        return total.step(self.server_lr / total.weight)
