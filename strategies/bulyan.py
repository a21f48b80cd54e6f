"""Bulyan over Krum (El Mhamdi, Guerraoui & Rouault, ICML 2018, arXiv:1802.07927, section 4).

    selection:  θ = n − 2f times: move the update of the lowest Krum score, among those that are
                left, to the selection S
    server:     x ← x + η · r,   r_p = mean of the β = θ − 2f values of S at coordinate p that lie
                closest to their median

n replies, of which at most f come from attackers; n ≥ 4f + 3 is the paper's condition.

Shapes: K replies of the round, S the selected ones, P entries of the model.

Differs from the paper: it takes gradients, we take updates Δ_k = y_k − x of local SGD. With
n' clients left, Krum's n' − f − 2 neighbours are none at the end of the selection (n' ≤ f + 2 for
small f); one is used then. A round with fewer than 4f + 3 replies leaves the model as it is, unless
those that are missing were rejected (see `strategies.krum.still_hidden`).

Why not Flower's (1.41): it selects the θ best of one scoring instead of scoring again after each;
its distances are those of `strategies.krum`'s note; and it collects garbage once per reply, which
took 7.5 s of a round with 50 clients and a model of 2,410 weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.parts import Range
from fedsim.records import Params, Replies, stack
from fedsim.stacks import coordinate_wise, flat_updates, middle, squared_distances
from fedsim.strategy import FedsimStrategy, Round
from strategies.krum import still_hidden

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Bulyan(FedsimStrategy):
    """A trimmed mean around the median of what Krum selects.

    Attributes:
        num_malicious: f, how many attackers a round may have.
        server_lr: η.
    """

    num_malicious: Annotated[int, Range(ge=0)] = 1
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        everyone = stack(replies)
        if everyone is None:
            return context.params
        count = len(everyone)
        hidden = still_hidden(self.num_malicious, replies.num_faulty, (count - 3) // 4)
        if hidden is None:
            self._warn(context.server_round, count)
            return context.params
        theta = count - 2 * hidden
        squared_KK = squared_distances(flat_updates(everyone.arrays, context.params))
        selected_S = select(squared_KK, hidden, theta)
        selected = everyone.rows(np.isin(np.arange(count), selected_S.cpu().numpy()))
        rule = partial(mean_around_median, count=theta - 2 * hidden)
        return coordinate_wise(rule, selected, context.params, self.server_lr)

    def _warn(self, server_round: int, count: int) -> None:
        level = logging.WARNING if not self.__dict__.get("_warned") else logging.DEBUG
        self._warned = True
        log.log(
            level,
            "round %d: Bulyan with num_malicious=%d needs %d replies and has %d; the model stays, "
            "in this and any such round",
            *(server_round, self.num_malicious, 4 * self.num_malicious + 3, count),
        )


def select(squared_KK: Tensor, num_malicious: int, theta: int) -> Tensor:
    """Return the clients of `theta` rounds of Krum, each among those that are left, sorted."""
    near_KK, order_KK = squared_KK.clone().fill_diagonal_(torch.inf).sort(1)
    left_K = torch.ones(len(squared_KK), dtype=torch.bool, device=squared_KK.device)
    for remaining in range(len(squared_KK), len(squared_KK) - theta, -1):
        nearest = max(1, remaining - num_malicious - 2)
        there_KK = left_K[order_KK]
        counted_KK = there_KK & (there_KK.cumsum(1) <= nearest)
        scores_K = torch.where(counted_KK, near_KK, 0).sum(1)
        scores_K = torch.where(left_K, scores_K, torch.inf)
        # Of equal scores, infinite ones too, the first that is left.
        best = scores_K.argsort(stable=True)
        left_K[best[left_K[best]][0]] = False
    return torch.nonzero(~left_K).flatten()


def mean_around_median(ordered: Tensor, count: int) -> Tensor:
    """Return the mean, at each coordinate, of the `count` values closest to the median.

    Of two equally close ones the lower, so that the order of the clients does not count.

    Args:
        ordered: Values sorted over the first axis.
        count: β.
    """
    apart = (ordered - middle(ordered)).abs()
    return ordered.gather(0, apart.argsort(dim=0, stable=True)[:count]).mean(0)
