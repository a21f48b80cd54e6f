"""Geometric median, RFA (Pillutla, Kakade & Harchaoui 2019, arXiv:1912.13445, Algorithm 2).

    v* = argmin_v Σ_k α_k ‖v − Δ_k‖              by the smoothed Weiszfeld iteration:
    v ← Σ_k β_k Δ_k / Σ_k β_k,    β_k = α_k / max(ν, ‖v − Δ_k‖)
    server:  x ← x + η · v*

Stands attackers of up to half of the total α. Flower ships no such strategy.

Shapes: K replies of the round, P entries of the model.

Differs from the paper: α_k is 1, not the number of samples (`weighting: examples` is the paper),
since an attacker may claim any number. The iteration starts at the coordinate-wise median, not at
the mean, which one attacker can move any distance away, and runs until it stands still: the paper's
R = 3 rounds save secure aggregations, which a server that sees the updates does not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum, stack
from fedsim.stacks import coordinate_median, flat_updates
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class GeometricMedian(FedsimStrategy):
    """The point of the smallest sum of distances to all updates.

    Attributes:
        weighting: `uniform`, or `examples`: each client's own claim of its number of samples.
        smoothing: ν, below which a distance counts as this much.
        iterations: At most so many.
        tolerance: Stop at steps shorter than this share of the updates' median distance.
        server_lr: η.
    """

    weighting: Literal["uniform", "examples"] = "uniform"
    smoothing: Annotated[float, Range(gt=0)] = 1e-6
    iterations: Annotated[int, Range(ge=1)] = 100
    tolerance: Annotated[float, Range(ge=0)] = 1e-6
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def aggregate(self, context: Round, replies: Replies) -> Params:
        everyone = stack(replies)
        if everyone is None:
            return context.params
        updates_KP = flat_updates(everyone.arrays, context.params)
        claims_K = np.ones(len(everyone)) if self.weighting == "uniform" else everyone.num_examples
        alpha_K = torch.from_numpy(claims_K / claims_K.sum()).to(updates_KP.device)
        weights_K = weiszfeld(
            updates_KP,
            alpha_K,
            smoothing=self.smoothing,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        total = UpdateSum(context.params)
        total.add(everyone.arrays, weights_K.cpu().numpy())
        return total.step(self.server_lr / total.weight)


def weiszfeld(
    rows_KP: Tensor, alpha_K: Tensor, *, smoothing: float, iterations: int, tolerance: float
) -> Tensor:
    """Return the weights, summing to 1, of which the rows' mean is their geometric median."""
    centre_P, weights_K = coordinate_median(rows_KP), alpha_K
    for _ in range(iterations):
        apart_K = torch.linalg.vector_norm(rows_KP - centre_P, dim=1)
        weights_K = alpha_K / apart_K.clamp_min(smoothing)
        weights_K = weights_K / weights_K.sum()
        moved_P = weights_K @ rows_KP
        step = torch.linalg.vector_norm(moved_P - centre_P)
        centre_P = moved_P
        if step <= tolerance * apart_K.median():
            break
    return weights_K
