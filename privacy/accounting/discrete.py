"""Integer noise for secure aggregation: Skellam and (distributed) discrete Gaussian, by Renyi DP.

Skellam: Agarwal, Kairouz, Liu (arXiv:2110.04995), Theorem 3.5 and its multi-dimensional corollary.
For integer orders alpha > 1, total variance mu on each coordinate, integer vectors that differ by
at most D1 in L1 and D2 in L2 norm:

    D_alpha <= alpha D2^2 / (2 mu) + min( ((2 alpha - 1) D2^2 + 6 D1) / (4 mu^2),  3 D1 / (2 mu) )

Discrete Gaussian: Kairouz, Liu, Steinke (arXiv:2102.06387), Proposition 14. n shares of
N_Z(0, s^2), s >= 1/2, d coordinates, v = n s^2; their sum is not quite discrete
Gaussian, and tau says how far:

    tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 s^2 k / (k + 1))
    D_alpha <= min( alpha D2^2 / (2 v) + tau d,
                    alpha/2 (D2^2 / v + 2 tau D1 / sqrt(v) + tau^2 d),
                    alpha/2 (D2 / sqrt(v) + tau sqrt(d))^2 )

One unit's vector has norms at most (l1_norm, l2_norm): D1, D2 are these under add/remove and twice
these under replacement. Reduction modulo the group's size afterwards is post-processing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsim.errors import ConfigError
from privacy.events import DiscreteGaussian, Mechanism, PureDP, Relation, Skellam

Curve = npt.NDArray[np.float64]
"""Renyi divergence at every order."""


def skellam_rdp(mechanism: Skellam, orders: Curve, relation: Relation) -> Curve:
    """Return the bound at every order; at a fractional one that of the next whole order."""
    if mechanism.variance == 0:
        return np.full_like(orders, np.inf)
    alpha, mu = np.maximum(np.ceil(orders), 2.0), mechanism.variance
    d1, d2 = _sensitivities(mechanism, relation)
    near = ((2 * alpha - 1) * d2**2 + 6 * d1) / (4 * mu**2)
    return alpha * d2**2 / (2 * mu) + np.minimum(near, 3 * d1 / (2 * mu))


def discrete_gaussian_rdp(mechanism: DiscreteGaussian, orders: Curve, relation: Relation) -> Curve:
    """Return the bound at every order.

    Raises:
        ConfigError: A share of noise is too narrow for the proposition (sigma < 1/2).
    """
    if mechanism.sigma == 0:
        return np.full_like(orders, np.inf)
    if mechanism.sigma < 0.5 and mechanism.shares > 1:
        raise ConfigError(
            f"sigma: {mechanism.sigma!r} of one share of discrete Gaussian noise; allowed: "
            "[0.5, inf). Scale the vectors up before rounding: the noise then spans more integers"
        )
    d1, d2 = _sensitivities(mechanism, relation)
    k = np.arange(1, mechanism.shares)
    tau = 10 * float(np.exp(-2 * (math.pi * mechanism.sigma) ** 2 * k / (k + 1)).sum())
    std, d = mechanism.sigma * math.sqrt(mechanism.shares), mechanism.dimension
    l1, l2 = d1 / std, d2 / std
    slope = min(l2**2 + 2 * tau * l1 + tau**2 * d, (l2 + tau * math.sqrt(d)) ** 2)
    return np.minimum(orders * l2**2 / 2 + tau * d, orders * slope / 2)


def pure_rdp(epsilon: float, orders: Curve) -> Curve:
    """Return the curve of the worst `epsilon`-DP mechanism, randomised response (a bound on all).

    log(p^a (1-p)^(1-a) + (1-p)^a p^(1-a)) / (a - 1) with p = e^epsilon / (1 + e^epsilon).
    """
    log_p, log_1p = -np.logaddexp(0.0, -epsilon), -np.logaddexp(0.0, epsilon)
    first = orders * log_p + (1 - orders) * log_1p
    second = orders * log_1p + (1 - orders) * log_p
    # Next to order 1 the quotient loses its digits; epsilon itself is a bound everywhere.
    bound = np.logaddexp(first, second) / (orders - 1)
    return np.asarray(np.minimum(np.where(orders > 1.01, bound, epsilon), epsilon))


def extra_rdp(mechanism: Mechanism, orders: Curve, relation: Relation) -> Curve | None:
    """Return the curve of a mechanism, unsampled, that dp-accounting does not know; else None."""
    if isinstance(mechanism, Skellam):
        return skellam_rdp(mechanism, orders, relation)
    if isinstance(mechanism, DiscreteGaussian):
        return discrete_gaussian_rdp(mechanism, orders, relation)
    if isinstance(mechanism, PureDP):
        return pure_rdp(mechanism.epsilon, orders)
    return None


def _sensitivities(
    mechanism: Skellam | DiscreteGaussian, relation: Relation
) -> tuple[float, float]:
    factor = 1.0 if relation == "add_remove" else 2.0
    return factor * mechanism.l1_norm, factor * mechanism.l2_norm
