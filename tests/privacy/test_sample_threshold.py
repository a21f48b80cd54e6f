"""Sampling and thresholding: the exact divergence by brute force, and the voting that follows."""

import math
from fractions import Fraction

import pytest

from privacy.sample_threshold import ballot, excess


def law(c: int, rate: Fraction, threshold: int) -> dict[int, Fraction]:
    """P of what is shown: a count, or -1 for nothing."""
    shown = {y: math.comb(c, y) * rate**y * (1 - rate) ** (c - y) for y in range(threshold, c + 1)}
    return {**shown, -1: 1 - sum(shown.values())}


def divergence(one, other, epsilon: float) -> float:
    limit = Fraction(math.exp(epsilon))
    return float(sum(max(0, p - limit * other.get(y, 0)) for y, p in one.items()))


@pytest.mark.parametrize(("threshold", "epsilon"), [(4, 0.5), (5, 1.0), (6, 0.2)])
def test_the_excess_is_that_of_all_outcomes_both_ways(threshold, epsilon):
    """In rational arithmetic, over numbers of holders up to 60."""
    rate = Fraction(-math.expm1(-epsilon)) / threshold
    found = excess(float(rate), threshold, epsilon)
    add, remove = 0.0, 0.0
    for c in range(1, 61):
        one, other = law(c, rate, threshold), law(c - 1, rate, threshold)
        add = max(add, divergence(one, other, epsilon))
        remove = max(remove, divergence(other, one, epsilon))
    assert found == pytest.approx(add, rel=1e-9)
    assert remove <= 1e-15


def test_voting_keeps_the_budget_and_is_at_least_as_strict_as_published():
    for epsilon, delta, rounds in ((4.0, 1e-6, 24), (1.0, 1e-5, 12), (8.0, 0.01, 4)):
        how, each = ballot(epsilon, delta, rounds, 0), epsilon / rounds
        t = how.threshold
        assert rounds * excess(how.rate, t, each) <= delta
        assert (t - 3) / (t - 2) * math.factorial(t) >= 1 / delta
        assert how.rate == pytest.approx((math.exp(each) - 1) / (t * math.exp(each)))
        assert how.rate <= 1 - math.exp(-each)
