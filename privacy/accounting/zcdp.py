"""Zero-concentrated DP: budgets that simply add up, and what they mean in epsilon and delta.

Bun and Steinke (arXiv:1605.02065), converted by Canonne, Kamath, Steinke (arXiv:2004.00010):

    Gaussian noise of std s on a sensitivity D costs rho = D^2 / (2 s^2)
    epsilon = min over alpha > 1 of  rho alpha - log(alpha delta) / (alpha - 1) + log(1 - 1/alpha)
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Return the epsilon at `delta` in (0, 1) of `rho`-zCDP, over all real orders.

    Example:
        >>> round(zcdp_epsilon(0.22425, 1e-5), 3)
        3.0
    """
    if rho == 0:
        return 0.0
    if math.isinf(rho):
        return math.inf
    # Any order gives a bound; the best is found over log(alpha - 1), each pass 50 times as close.
    low, high = -20.0, 20.0
    best = math.inf
    for _ in range(6):
        log_order = np.linspace(low, high, 101)
        alpha = 1 + np.exp(log_order)
        bound = rho * alpha - np.log(alpha * delta) / (alpha - 1) + np.log1p(-1 / alpha)
        at = int(bound.argmin())
        best = min(best, float(bound[at]))
        low, high = log_order[max(at - 1, 0)], log_order[min(at + 1, 100)]
    return max(0.0, best)


def zcdp_rho(epsilon: float, delta: float) -> float:
    """Return the largest rho whose `zcdp_epsilon` is at most `epsilon` > 0.

    Example:
        >>> round(zcdp_rho(1.0, 1e-5), 5)
        0.03056
    """
    root = brentq(lambda log_rho: zcdp_epsilon(math.exp(log_rho), delta) - epsilon, -60.0, 20.0)
    rho = math.exp(root)
    while zcdp_epsilon(rho, delta) > epsilon:
        rho *= 1 - 1e-12
    return rho
