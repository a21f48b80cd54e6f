"""Trade-off curves: how often a test may be right, under μ-GDP and under any privacy profile.

Dong, Roth, Su 2019 (arXiv:1905.02383). A mechanism is μ-GDP if
telling two neighbouring data sets apart by its output is no easier than N(0, 1) from N(μ, 1):

    TPR(f) = Φ(Φ⁻¹(f) + μ)                     at false positive rate f
    δ(ε)   = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)

Any profile δ(ε), of which (ε, δ) is one point, bounds every test of either side:

    TPR(f) <= min_ε min(e^ε f + δ(ε), 1 − e^(−ε) (1 − δ(ε) − f))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from fedsim.errors import ConfigError


def gdp_delta(epsilon: float, mu: float) -> float:
    """Return δ(ε) of a μ-GDP mechanism.

    Args:
        epsilon: Any number.
        mu: >= 0.

    Example:
        >>> round(gdp_delta(1.0, 1.0), 6)
        0.126937
    """
    if mu == 0:
        return max(0.0, -float(np.expm1(epsilon)))
    first = float(ndtr(mu / 2 - epsilon / mu))
    # e^ε alone overflows where the product is tiny.
    second = float(np.exp(min(epsilon + log_ndtr(-mu / 2 - epsilon / mu), 0.0)))
    return max(0.0, first - second)


def gdp_epsilon(delta: float, mu: float) -> float:
    """Return the smallest ε >= 0 at which a μ-GDP mechanism is (ε, δ)-DP; inf if there is none.

    Args:
        delta: In [0, 1).
        mu: >= 0.

    Example:
        >>> round(gdp_epsilon(1e-5, 1.0), 4)
        4.3772
    """
    check_delta(delta)
    if gdp_delta(0.0, mu) <= delta:
        return 0.0
    if delta == 0:
        return float("inf")
    high = 1.0
    while gdp_delta(high, mu) > delta:
        high *= 2
    return bracket(lambda epsilon: gdp_delta(epsilon, mu) <= delta, 0.0, high)[1]


def gdp_mu(epsilon: float, delta: float) -> float:
    """Return the largest μ at which μ-GDP implies (ε, δ)-DP; 0 if δ = 0.

    Args:
        epsilon: >= 0.
        delta: In [0, 1).
    """
    check_delta(delta)
    if delta == 0:
        return 0.0
    high = 1.0
    while gdp_delta(epsilon, high) <= delta:
        high *= 2
    return bracket(lambda mu: gdp_delta(epsilon, mu) > delta, 0.0, high)[0]


def gdp_tpr(fpr_F: np.ndarray, mu: float) -> np.ndarray:
    """Return the highest true positive rates `[F]` at false positive rates `[F]` under μ-GDP."""
    tpr_F: np.ndarray = ndtr(ndtri(fpr_F) + mu)
    return tpr_F


def profile_tpr(fpr_F: np.ndarray, epsilon_E: np.ndarray, delta_E: np.ndarray) -> np.ndarray:
    """Return an upper bound `[F]` on true positive rates under points (ε, δ) of a profile.

    dp-accounting's `PrivacyLossDistribution.get_delta_for_epsilon` gives the points of a run.

    Args:
        fpr_F: False positive rates, in [0, 1].
        epsilon_E: Points of a profile that holds both ways,
        delta_E: and the δ at each.
    """
    grown_EF = np.exp(epsilon_E)[:, None] * fpr_F + delta_E[:, None]
    left_EF = 1 - np.exp(-epsilon_E)[:, None] * (1 - delta_E[:, None] - fpr_F)
    bound_F: np.ndarray = np.minimum(grown_EF, left_EF).min(axis=0).clip(0, 1)
    return bound_F


def profile_fpr(tpr: float, epsilon_E: np.ndarray, delta_E: np.ndarray) -> float:
    """Return a lower bound on the false positive rate of a test with this true positive rate.

    The inverse of `profile_tpr`, whose arguments these are: the profile bounds both sides, so that
    a test's complement, which tells the other side, has FPR 1 − tpr and TPR 1 − fpr.
    """
    return 1 - float(profile_tpr(np.array([1 - tpr]), epsilon_E, delta_E)[0])


def bracket(
    holds: Callable[[float], bool], low: float, high: float, *, precision: float = 1e-13
) -> tuple[float, float]:
    """Return two near numbers between which `holds` turns from false to true, by bisection.

    A lower bound takes the first of them, an upper bound the second.

    Args:
        holds: False up to some number, true from there; false at `low` and true at `high`.
        low: The lower end.
        high: The upper end.
        precision: How far apart the two may be, absolute and relative to the number.
    """
    while high - low > precision * max(1.0, low):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def check_delta(delta: float) -> None:
    """Refuse a δ outside [0, 1).

    Raises:
        ConfigError: It is.
    """
    if not 0 <= delta < 1:
        raise ConfigError(f"delta: {delta!r} is not allowed; expected [0, 1), e.g. 1e-5")
