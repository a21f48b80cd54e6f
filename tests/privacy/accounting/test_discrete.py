"""Integer noise: the papers' bounds against exact Renyi divergences, summed term by term."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import skellam

from fedsim.errors import ConfigError
from privacy.accounting.discrete import (
    discrete_gaussian_rdp,
    pure_rdp,
    skellam_rdp,
)
from privacy.events import DiscreteGaussian, Skellam
from tests.privacy._events import ADD, REPLACE

ORDERS = np.array([2.0, 3.0, 8.0, 32.0])


def exact_renyi(log_p, log_q, order):
    return logsumexp(order * log_p + (1 - order) * log_q) / (order - 1)


def log_skellam(mu):
    reach = int(40 * math.sqrt(mu)) + 60
    return skellam.logpmf(np.arange(-reach, reach + 1), mu / 2, mu / 2)


@pytest.mark.parametrize("mu", [4.0, 25.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_skellam_bound_is_above_the_divergence_and_close_for_wide_noise(mu, shift):
    mechanism = Skellam(variance=mu, l1_norm=float(shift), l2_norm=float(shift))
    bound = skellam_rdp(mechanism, ORDERS, ADD)
    logs = log_skellam(mu)
    for order, above in zip(ORDERS, bound, strict=True):
        if order * shift > mu:
            continue  # the tails that carry the sum are out of reach of float64
        p, q = logs[shift:], logs[:-shift]
        seen = np.isfinite(p) & np.isfinite(q)
        exact = exact_renyi(p[seen], q[seen], order)
        assert exact <= above * (1 + 1e-9)
        if mu == 400:
            assert above <= 1.02 * exact + 1e-9


def test_skellam_by_hand():
    """alpha = 3, mu = 50, D1 = 4, D2 = 2: 0.12 + min((5 * 4 + 24) / 10^4, 0.12) = 0.1244."""
    mechanism = Skellam(variance=50.0, l1_norm=4.0, l2_norm=2.0)
    assert skellam_rdp(mechanism, np.array([3.0]), ADD)[0] == pytest.approx(0.1244, rel=1e-12)
    # A fractional order pays for the next whole one; replacement doubles both norms.
    assert skellam_rdp(mechanism, np.array([2.1]), ADD)[0] == pytest.approx(0.1244, rel=1e-12)
    double = Skellam(variance=50.0, l1_norm=8.0, l2_norm=4.0)
    np.testing.assert_array_equal(
        skellam_rdp(mechanism, ORDERS, REPLACE), skellam_rdp(double, ORDERS, ADD)
    )


def log_discrete_gaussian(sigma, reach):
    x = np.arange(-reach, reach + 1)
    logs = -(x**2) / (2 * sigma**2)
    return logs - logsumexp(logs)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_central_discrete_gaussian_is_as_private_as_a_gaussian(sigma):
    mechanism = DiscreteGaussian(sigma=sigma, shares=1, dimension=1, l1_norm=1.0, l2_norm=1.0)
    logs = log_discrete_gaussian(sigma, 400)
    for order, above in zip(ORDERS, discrete_gaussian_rdp(mechanism, ORDERS, ADD), strict=True):
        assert above == pytest.approx(order / (2 * sigma**2), rel=1e-12)
        assert exact_renyi(logs[1:], logs[:-1], order) == pytest.approx(above, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("shares", [2, 5])
def test_summed_shares_stay_below_the_bound(sigma, shares):
    mechanism = DiscreteGaussian(sigma=sigma, shares=shares, dimension=1, l1_norm=1.0, l2_norm=1.0)
    reach = 60
    share = np.exp(log_discrete_gaussian(sigma, reach))
    total = share
    for _ in range(shares - 1):
        total = np.convolve(total, share)
    middle, width = len(total) // 2, int(8 * sigma * math.sqrt(shares))
    logs = np.log(total[middle - width : middle + width + 1])
    for order in (2.0, 3.0):
        exact = exact_renyi(logs[1:], logs[:-1], order)
        above = discrete_gaussian_rdp(mechanism, np.array([order]), ADD)[0]
        assert exact <= above
        if sigma == 2.0:
            assert above <= 1.001 * exact


def test_the_gap_between_shares_and_a_whole_by_hand():
    """n = 2, sigma = 1/2: tau = 10 exp(-pi^2 / 4), v = 1/2; the first term wins at a high order."""
    mechanism = DiscreteGaussian(sigma=0.5, shares=2, dimension=3, l1_norm=1.0, l2_norm=1.0)
    tau = 10 * math.exp(-(math.pi**2) / 4)
    orders = np.array([2.0, 100.0])
    root = math.sqrt(2.0)
    expected = [
        min(
            a * 2 / 2 + 3 * tau,
            a / 2 * (2 + 2 * tau * root + 3 * tau**2),
            a / 2 * (root + tau * math.sqrt(3)) ** 2,
        )
        for a in orders
    ]
    np.testing.assert_allclose(discrete_gaussian_rdp(mechanism, orders, ADD), expected, rtol=1e-12)


def test_shares_too_narrow_for_the_proposition_are_refused():
    narrow = DiscreteGaussian(sigma=0.4, shares=2, dimension=1, l1_norm=1.0, l2_norm=1.0)
    with pytest.raises(ConfigError, match="Scale the vectors up"):
        discrete_gaussian_rdp(narrow, ORDERS, ADD)


def test_pure_dp_is_randomised_responses_divergence():
    epsilon = 1.3
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    logs = np.log([p, 1 - p]), np.log([1 - p, p])
    for order, found in zip(ORDERS, pure_rdp(epsilon, ORDERS), strict=True):
        assert found == pytest.approx(exact_renyi(*logs, order), rel=1e-12)
    tiny = pure_rdp(epsilon, np.array([1.001, 1e6]))
    assert (tiny <= epsilon).all() and tiny[1] == pytest.approx(epsilon, rel=1e-5)
