"""Coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv:1803.01498, Definition 2).

    server:  x_p ← x_p + η · mean of the (y_k − x)_p without the ⌊βn⌋ smallest and the ⌊βn⌋ largest

n replies; every reply counts alike, whatever number of samples it claims.

Differs from the paper: it takes gradients, we take updates of local SGD.

Why beside Flower's `FedTrimmedAvg` (1.41), which is the same for η = 1 and is offered as
strategy=fedtrimmedavg: that needs a message per client, and takes three times as long per round;
its ⌊βn⌋ is that of the rounded product, e.g. 28 of 100 for β = 0.29.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fedsim.parts import Range
from fedsim.records import Params, Replies, stack
from fedsim.stacks import coordinate_wise
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class TrimmedMean(FedsimStrategy):
    """The mean of the updates without the extreme ones at each coordinate.

    Attributes:
        beta: Share of the replies that is cut at either end; at least that of the attackers.
        server_lr: η.
    """

    beta: Annotated[float, Range(ge=0, lt=0.5)] = 0.2
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        everyone = stack(replies)
        if everyone is None:
            return context.params
        count = len(everyone)
        # 0.29 · 100 is 28.999… in floating point; and something has to be left.
        cut = min(int(self.beta * count + 1e-9), (count - 1) // 2)

        def trimmed_mean(ordered: Tensor) -> Tensor:
            return ordered[cut : count - cut].mean(0)

        return coordinate_wise(trimmed_mean, everyone, context.params, self.server_lr)
