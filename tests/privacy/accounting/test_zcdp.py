"""zCDP to epsilon and back: published pins, and a direct minimisation."""

import math

import pytest
from scipy.optimize import minimize_scalar

from privacy.accounting.gaussian import gaussian_epsilon
from privacy.accounting.zcdp import zcdp_epsilon, zcdp_rho

PINS = [(1.0, 0.03056), (3.0, 0.22425), (5.0, 0.55097)]


@pytest.mark.parametrize(("epsilon", "rho"), PINS)
def test_published_pins(epsilon, rho):
    assert zcdp_rho(epsilon, 1e-5) == pytest.approx(rho, abs=6e-6)
    assert zcdp_epsilon(zcdp_rho(epsilon, 1e-5), 1e-5) == pytest.approx(epsilon, rel=1e-9)
    assert zcdp_epsilon(zcdp_rho(epsilon, 1e-5), 1e-5) <= epsilon


@pytest.mark.parametrize("rho", [1e-6, 0.01, 1.0, 50.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-8])
def test_it_is_the_minimum(rho, delta):
    def bound(log_order):
        alpha = 1 + math.exp(log_order)
        return rho * alpha - math.log(alpha * delta) / (alpha - 1) + math.log1p(-1 / alpha)

    best = min(
        minimize_scalar(bound, bounds=(low, low + 4), method="bounded").fun
        for low in range(-12, 14, 2)
    )
    assert zcdp_epsilon(rho, delta) == pytest.approx(max(best, 0), abs=1e-7)


def test_it_is_above_the_gaussian_that_it_describes():
    for mu in (0.1, 1.0, 5.0):
        exact = gaussian_epsilon(mu, 1e-6)
        assert exact < zcdp_epsilon(mu * mu / 2, 1e-6) < 1.4 * exact


def test_the_ends():
    assert zcdp_epsilon(0.0, 1e-5) == 0
    assert zcdp_epsilon(math.inf, 1e-5) == math.inf
