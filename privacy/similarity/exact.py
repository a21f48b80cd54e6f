"""Similarities by brute force: the truth that estimates are compared with, and the slow way.

    gaussian exp(−‖z‖²/σ²)     exponential exp(−‖z‖/σ)     laplace exp(−‖z‖₁/σ)
    rational_l2 1/(1 + ‖z‖/σ)  rational_l2_squared 1/(1 + ‖z‖²/σ²)  rational_l1 1/(1 + ‖z‖₁/σ)

No privacy. Shapes: N records, Q queries, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal[
    "gaussian", "exponential", "laplace", "rational_l2", "rational_l2_squared", "rational_l1"
]
BLOCK = 2**22
"""Pairs that are held at a time."""


def kernel_value(kernel: Kernel, distance: Tensor, bandwidth: float) -> Tensor:
    """Return k of distances: in L1 for `laplace` and `rational_l1`, else in L2."""
    z = distance / bandwidth
    if kernel == "gaussian":
        return (-z.square()).exp()
    if kernel in ("exponential", "laplace"):
        return (-z).exp()
    return 1 / (1 + (z.square() if kernel == "rational_l2_squared" else z))


def norm_of(kernel: Kernel) -> int:
    """Return p of the L_p distance that a kernel is of."""
    return 1 if kernel in ("laplace", "rational_l1") else 2


def kernel_sums(x_ND: Tensor, y_QD: Tensor, kernel: Kernel, bandwidth: float) -> Tensor:
    """Return Σ_x k(x, y), float64 `[Q]`."""
    return pair_sums(
        x_ND, y_QD, norm_of(kernel), lambda away: kernel_value(kernel, away, bandwidth)
    )


def power_sums(x_ND: Tensor, y_QD: Tensor, p: int) -> Tensor:
    """Return Σ_x ‖x − y‖_p^p, float64 `[Q]`."""
    total_Q = torch.zeros(len(y_QD), dtype=torch.float64, device=y_QD.device)
    x, y = x_ND.double(), y_QD.double()
    step = max(1, BLOCK // max(1, len(x)))
    for first in range(0, len(y), step):
        for d in range(x.shape[1]):
            away = (x[:, d] - y[first : first + step, d, None]).abs_()
            total_Q[first : first + step] += away.pow_(p).sum(1)
    return total_Q


def pair_sums(x_ND: Tensor, y_QD: Tensor, p: int, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Return Σ_x value(‖x − y‖_p), float64 `[Q]`."""
    total_Q = torch.zeros(len(y_QD), dtype=torch.float64, device=y_QD.device)
    x, y = x_ND.double(), y_QD.double()
    step = max(1, BLOCK // max(1, len(y)))
    for first in range(0, len(x), step):
        # By differences: by inner products, equal points would lie 1e-7 apart.
        away = torch.cdist(
            y, x[first : first + step], p=p, compute_mode="donot_use_mm_for_euclid_dist"
        )
        total_Q += value(away).sum(1)
    return total_Q
