"""Clipping to an L2 norm, and the norm that follows a quantile of what clients send.

Clipping:  x <- x * min(1, C / ||x||);  a row whose norm is not finite is rejected and set to zero.

Sensitivity: the clipped rows of D and of D without (or with) row x differ by x alone, whose norm is
at most C(1 + 1e-6); so a sum over rows moves by at most that (add/remove), twice that (replace
one). No row's clipping looks at another row.

Adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871, algorithm 1.

    b_i = 1[||x_i|| <= C];   b~ = 1/2 + (sum_i (b_i - 1/2) + sigma_b N(0,1)) / n
    C  <- C * exp(-eta_C (b~ - gamma))

b~ counts the clients that are *within* the norm: when all are (b~ = 1 > gamma) the norm shrinks.
With the clipped fraction in its place the norm would run away from the quantile, to 0 or to
infinity.

The indicators are released beside the sum. Shifted by 1/2 each has magnitude 1/2, so that the count
alone is a Gaussian of noise multiplier 2 sigma_b, and sum and count together are one of z where
z^-2 = z_delta^-2 + (2 sigma_b)^-2 (both are blocks of one Gaussian vector, scaled to unit noise).
The sum has to be noised with z_delta > z for the whole to be charged as z.

Shapes: K clients (rows), P parameters. Differs from the paper: n is the planned number of clients,
a public constant; who did not answer counts as 1/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.errors import ConfigError

SMALLEST_BOUND = 1e-30
"""Below it a float32 row cannot be scaled to the norm with a relative error of 1e-6."""


def clip_(rows_KP: Tensor, bound: float) -> Tensor:
    """Clip every row in place to the L2 norm `bound`, and return which rows are accepted, bool [K].

    Rejected rows (not finite) are set to zero, so that a sum which forgets the mask stays finite.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0]])
        >>> clip_(rows, 1.0).tolist(), rows.tolist()[2]
        ([True, True, False], [0.0, 0.0])

    Raises:
        ConfigError: The bound is not a finite number of at least 1e-30.
        TypeError: The rows are neither float32 nor float64: half precision cannot hold the norm.
    """
    check_bound(bound)
    norm_K = norms(rows_KP)
    accepted_K: Tensor = torch.isfinite(norm_K)
    rows_KP[~accepted_K] = 0.0
    factor_K = torch.where(accepted_K & (norm_K > bound), bound / norm_K, 1.0)
    # A factor that is a denormal of the rows' type would lose its digits: those rows in two steps.
    tiny_K = factor_K < SMALLEST_BOUND
    if bool(tiny_K.any()):
        unit_KP = rows_KP[tiny_K].double() / norm_K[tiny_K].unsqueeze(1)
        rows_KP[tiny_K] = (unit_KP * bound).to(rows_KP.dtype)
        factor_K[tiny_K] = 1.0
    rows_KP.mul_(factor_K.to(rows_KP.dtype).unsqueeze(1))
    return accepted_K


def norms(rows_KP: Tensor) -> Tensor:
    """Return the L2 norm of every row in float64, [K]; not finite where the row is not.

    Squares of float32 numbers fit float64, from the smallest denormal to the largest. float64 rows
    are divided by their largest magnitude first, since 1e200 squared does not fit.
    """
    if rows_KP.dtype == torch.float32:
        small_K: Tensor = torch.linalg.vector_norm(rows_KP, dim=1, dtype=torch.float64)
        return small_K
    if rows_KP.dtype != torch.float64:
        raise TypeError(f"rows of {rows_KP.dtype} cannot be clipped; convert them to float32 first")
    largest_K = rows_KP.abs().amax(dim=1) if rows_KP.shape[1] else rows_KP.new_zeros(len(rows_KP))
    divisor_K = torch.where((largest_K > 0) & torch.isfinite(largest_K), largest_K, 1.0)
    norm_K: Tensor = torch.linalg.vector_norm(rows_KP / divisor_K.unsqueeze(1), dim=1)
    return divisor_K * norm_K


def check_bound(bound: float) -> None:
    """Raise unless `bound` can be clipped to."""
    if not (math.isfinite(bound) and bound >= SMALLEST_BOUND):
        raise ConfigError(
            f"clip_norm: {bound!r} is out of range; allowed: a finite number >= {SMALLEST_BOUND:g}"
        )


def update_multiplier(noise_multiplier: float, count_sigma: float) -> float:
    """Return z_delta, the noise of the sum with which sum and count together cost z.

    Example:
        >>> round(update_multiplier(1.0, 5.0), 6)
        1.005038

    Raises:
        ConfigError: The count alone costs more than z: count_sigma <= z / 2.
    """
    if noise_multiplier == 0:
        return 0.0
    if not (noise_multiplier > 0 and 2 * count_sigma > noise_multiplier):
        raise ConfigError(
            f"count_sigma: {count_sigma!r} is too small for noise_multiplier {noise_multiplier!r}: "
            f"the noisy count alone would cost more; type one above {noise_multiplier / 2:g} "
            "(Andrew et al. take the cohort's size / 20)"
        )
    return float((noise_multiplier**-2 - (2 * count_sigma) ** -2) ** -0.5)


def noisy_fraction(within: int, answered: int, planned: int, noise: float) -> float:
    """Return b~, the noisy fraction of clients whose norm is within the bound.

    Args:
        within: How many of those that answered had ||x|| <= C. Their sensitivity is 1/2 in the
            shifted sum, not 1: see the header.
        answered: How many answered.
        planned: The public number of clients a round is planned for, >= 1.
        noise: sigma_b times one standard normal.
    """
    return 0.5 + (within - 0.5 * answered + noise) / planned


def next_bound(bound: float, fraction: float, *, quantile: float, learning_rate: float) -> float:
    """Return the next clipping norm: smaller where more than `quantile` of clients are within.

    Example:
        >>> next_bound(1.0, fraction=0.0, quantile=0.5, learning_rate=0.2) > 1.0
        True
    """
    moved = bound * math.exp(-learning_rate * (fraction - quantile))
    return min(max(moved, SMALLEST_BOUND), 1.0 / SMALLEST_BOUND)
