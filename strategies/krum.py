"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv:1703.02757, sections 4 and 5).

    score:   s(k) = Σ ‖Δ_k − Δ_j‖² over the n − f − 2 clients j ≠ k nearest to k
    server:  x ← x + η · mean of Δ_k over the m clients of the lowest scores     (m = 1: Krum)

n replies, of which at most f come from attackers; n ≥ 2f + 3 is the paper's condition.

Shapes: K replies of the round, P entries of the model.

Differs from the paper: it selects gradients, we select updates Δ_k = y_k − x of local SGD. m is at
most n − f − 2. A round with fewer than 2f + 3 replies leaves the model as it is, unless those that
are missing were rejected: f bounds the faulty clients among those asked, found ones included.

Why not Flower's (1.41): it computes ‖a‖² + ‖b‖² − 2⟨a, b⟩ of the models themselves in float32,
which is rounding noise (even negative) once clients differ little beside the size of their weights;
counters of normalisation layers enter the distance; Multi-Krum's mean is weighted by the
`num-examples` that clients claim, so that one selected attacker owns it; and rounds with too few
replies are aggregated all the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum, stack
from fedsim.stacks import flat_updates, squared_distances
from fedsim.strategy import FedsimStrategy, Round

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Krum(FedsimStrategy):
    """The mean of the updates that lie closest to most others.

    Attributes:
        num_malicious: f, how many attackers a round may have.
        num_selected: m; 1 is Krum; null for n − f − 2, the most that Multi-Krum may take.
        server_lr: η.
    """

    num_malicious: Annotated[int, Range(ge=0)] = 1
    num_selected: Annotated[int, Range(ge=1)] | None = 1
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        everyone = stack(replies)
        if everyone is None:
            return context.params
        count = len(everyone)
        hidden = still_hidden(self.num_malicious, replies.num_faulty, (count - 3) // 2)
        if hidden is None:
            self._warn(context.server_round, count)
            return context.params
        nearest = count - hidden - 2
        updates_KP = flat_updates(everyone.arrays, context.params)
        scores_K = krum_scores(squared_distances(updates_KP), nearest)
        chosen = scores_K.argsort(stable=True)[: min(self.num_selected or nearest, nearest)]
        best = everyone.rows(np.isin(np.arange(count), chosen.cpu().numpy()))
        total = UpdateSum(context.params)
        total.add(best.arrays, np.ones(len(best)))
        return total.step(self.server_lr / total.weight)

    def _warn(self, server_round: int, count: int) -> None:
        level = logging.WARNING if not self.__dict__.get("_warned") else logging.DEBUG
        self._warned = True
        log.log(
            level,
            "round %d: Krum with num_malicious=%d needs %d replies and has %d; the model stays, in "
            "this and any such round",
            *(server_round, self.num_malicious, 2 * self.num_malicious + 3, count),
        )


def still_hidden(num_malicious: int, found: int, limit: int) -> int | None:
    """Return how many attackers a rule must assume among a round's replies.

    An attacker whose reply was rejected is not among them any more. That lets a round which has
    become too small by rejections still be aggregated; otherwise all are assumed.

    Args:
        num_malicious: f, among the clients that were asked.
        found: How many of those were rejected.
        limit: The most that the rule stands with this many replies.

    Returns:
        f where that is within the limit, else the limit if no more can be left, else None.
    """
    if num_malicious <= limit:
        return num_malicious
    return limit if 0 <= limit and num_malicious - found <= limit else None


def krum_scores(squared_KK: Tensor, nearest: int) -> Tensor:
    """Return each client's sum of squared distances to its `nearest` others, `[K]`."""
    others_KK = squared_KK.clone().fill_diagonal_(torch.inf)
    return others_KK.sort(1).values[:, :nearest].sum(1)
