"""Average over all clients, absent ones counting as zero updates: a baseline of FedAU.

    server:    x ← x + η · (1/N) · Σ_{k active} (y_k − x)

Wang & Ji (ICLR 2024, arXiv:2306.03401), baseline "average all". Equals FedAU with cutoff 1. Needs
a larger η than averaging over participants does (the paper's CIFAR-10 command uses 10).

Differs from the paper: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class AverageAll(FedsimStrategy):
    """Sum of the participants' updates over N.

    Attributes:
        server_lr: η.
    """

    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, np.ones(len(chunk)))
        return total.step(self.server_lr / context.num_clients)
