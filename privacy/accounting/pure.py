"""Mechanisms with delta = 0, and how sampling amplifies them.

Li, Qardaji, Su (arXiv:1101.2604), Theorem 1 for Poisson sampling; Balle, Barthe, Gaboardi
(arXiv:1807.01647), Theorems 8 and 9 for both:

    a sample that holds a given unit with probability q:   epsilon' = log(1 + q (e^epsilon - 1))

under add/remove for Poisson sampling and under replacement for subsets of fixed size. (Poisson
under replacement has no such form: the samples may also differ in whether they hold the
unit at all, which replacement alone does not bound.)
"""

from __future__ import annotations

import math

from privacy.events import FixedSize, Laplace, Mechanism, Poisson, PureDP, Relation, Sampling


def pure_epsilon(mechanism: Mechanism, sampling: Sampling, relation: Relation) -> float | None:
    """Return the epsilon at delta = 0 of one release, or None where there is none (or none proved).

    A Laplace scale is in units of one unit's L1 norm; replacement changes the sum by twice that.
    """
    if isinstance(mechanism, PureDP):
        epsilon = mechanism.epsilon
    elif isinstance(mechanism, Laplace):
        sensitivity = 1.0 if relation == "add_remove" else 2.0
        epsilon = sensitivity / mechanism.scale if mechanism.scale > 0 else math.inf
    else:
        return None
    if isinstance(sampling, Poisson):
        return amplified(epsilon, sampling.rate) if relation == "add_remove" else None
    if isinstance(sampling, FixedSize):
        rate = sampling.size / sampling.population
        return amplified(epsilon, rate) if relation == "replace_one" else None
    return epsilon


def amplified(epsilon: float, rate: float) -> float:
    """Return log(1 + rate (e^epsilon - 1)), without overflow.

    Example:
        >>> round(amplified(1.0, 0.01), 6)
        0.017037
    """
    if rate == 0 or epsilon == 0:
        return 0.0
    if epsilon < 30:
        return math.log1p(rate * math.expm1(epsilon))
    return epsilon + math.log(rate + (1 - rate) * math.exp(-epsilon))
