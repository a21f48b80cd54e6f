"""The Gaussian mechanism without sampling: exact, in closed form.

Dong, Roth, Su, "Gaussian Differential Privacy" (arXiv:1905.02383), Corollary 3.3; Balle and Wang
(arXiv:1805.06530), Theorem 8.

    releases t = 1..T, each with noise multiplier z_t, adaptively chosen:  mu^2 = sum_t 1 / z_t^2
    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

The composition of Gaussian mechanisms is a Gaussian mechanism, so this is exact, not a bound.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def gaussian_delta(mu: float, epsilon: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return delta at every `epsilon` >= 0 of Gaussian noise at sensitivity / std = `mu`."""
    eps = np.asarray(epsilon, dtype=np.float64)
    # As Phi(a) (1 - e^(eps + log Phi(b) - log Phi(a))): e^eps overflows, and far out in the tail
    # the two terms agree in most of their digits.
    log_a, log_b = log_ndtr(mu / 2 - eps / mu), log_ndtr(-mu / 2 - eps / mu)
    return np.asarray(np.exp(log_a) * -np.expm1(np.minimum(eps + log_b - log_a, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon >= 0 at `delta` of the Gaussian mechanism of sensitivity `mu`.

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 6)
        4.377178
    """
    if mu == 0 or 2 * ndtr(mu / 2) - 1 <= delta:
        return 0.0
    if math.isinf(mu):
        return math.inf
    # At `high` already Phi(mu/2 - epsilon/mu) <= delta.
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    root = brentq(lambda e: float(gaussian_delta(mu, e)) - delta, 0.0, high, xtol=1e-13, rtol=1e-13)
    return float(root) * (1 + 1e-12) + 1e-12  # the root is found to 1e-13; never below the truth
