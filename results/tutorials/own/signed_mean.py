"""A majority vote over the signs of each coordinate (Bernstein et al. 2019, arXiv:1810.05291).

    server:    x ← x + s · sign(Σ_k sign(y_k − x))

Differs from the paper: clients send their updates, and the server takes their signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from fedsim.parts import Range
from fedsim.records import Params, Replies
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class SignedMean(FedsimStrategy):
    """A majority vote of the participants on every coordinate.

    Attributes:
        step: s, how far the model moves on each coordinate.
    """

    step: Annotated[float, Range(gt=0)] = 0.002

    def aggregate(self, context: Round, replies: Replies) -> Params:
        """Return the next model; a round without replies leaves it as it is."""
        votes = {name: torch.zeros_like(x) for name, x in context.params.items()}
        for chunk in replies.chunks():
            for name, x in context.params.items():
                votes[name] += (chunk.arrays[name] - x).sign().sum(0)
        return {name: x + self.step * votes[name].sign() for name, x in context.params.items()}
