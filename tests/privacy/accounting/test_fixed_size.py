"""Subsets of fixed size: the amplified profile, its discretisation, and a release simulated."""

import math

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf
from scipy.integrate import quad
from scipy.stats import norm

from privacy.accounting.fixed_size import fixed_size_pmf, symmetric_pmf
from privacy.accounting.gaussian import gaussian_delta
from privacy.events import FixedSize, Gaussian, Laplace

HALF = FixedSize(size=20, population=100)
MECHANISMS = [Gaussian(noise_multiplier=1.0), Gaussian(noise_multiplier=4.0), Laplace(scale=1.0)]


def profile(mechanism, epsilon, q=0.2):
    inner = math.log1p(math.expm1(epsilon) / q)
    if isinstance(mechanism, Gaussian):
        return q * float(gaussian_delta(2 / mechanism.noise_multiplier, inner))
    return q * max(0.0, 1 - math.exp((inner - 2 / mechanism.scale) / 2))


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_the_discretised_profile_is_the_theorems_at_every_dot(mechanism):
    pmf = fixed_size_pmf(mechanism, HALF, 1e-3)
    for epsilon in (0.0, 0.01, 0.3, 0.8):
        exact = profile(mechanism, epsilon)
        assert pmf.get_delta_for_epsilon(epsilon) == pytest.approx(exact, rel=1e-9, abs=1e-15)
        # Replacement is symmetric: delta(-e) = 1 - e^-e + e^-e delta(e).
        mirrored = -math.expm1(-epsilon) + math.exp(-epsilon) * exact
        assert pmf.get_delta_for_epsilon(-epsilon) == pytest.approx(mirrored, rel=1e-9)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_between_the_dots_it_is_above(mechanism):
    pmf = fixed_size_pmf(mechanism, HALF, 0.05)
    for epsilon in np.linspace(0.013, 0.9, 30):
        assert pmf.get_delta_for_epsilon(epsilon) >= profile(mechanism, epsilon) - 1e-15


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_the_masses_are_a_distribution(mechanism):
    pmf = fixed_size_pmf(mechanism, HALF, 1e-4)
    assert pmf._probs.min() >= 0
    assert pmf._probs.sum() + pmf._infinity_mass == pytest.approx(1, abs=1e-11)


def test_the_same_masses_as_dp_accountings_connect_the_dots():
    grid, q, mu = 1e-2, 0.2, 2.0
    last = 700
    loss = grid * np.arange(last + 1)
    delta = q * gaussian_delta(mu, np.log1p(np.expm1(loss) / q))
    ours = symmetric_pmf(delta, grid)
    below = -np.expm1(-loss[:0:-1]) + np.exp(-loss[:0:-1]) * delta[:0:-1]
    theirs = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        grid, -last, last, np.concatenate([below, delta])
    ).to_dense_pmf()
    np.testing.assert_allclose(ours._probs, theirs._probs, atol=1e-13)
    assert ours._lower_loss == theirs._lower_loss == -last


def test_the_theorem_bounds_an_actual_pair():
    """Units 0 or +-1, m of N drawn: N(+-1, z^2) with probability q, else both alike.

    The pair P = (1-q) N(0) + q N(1), Q = (1-q) N(0) + q N(-1) is one that a data set can bring
    about, so its divergence is a lower bound on the truth, and the profile must be above it.
    """
    q, z = 0.2, 1.0

    def density(x, mean):
        return (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, mean, z)

    for epsilon in (0.05, 0.2, 0.6):
        pair = quad(
            lambda x, e=epsilon: max(0.0, density(x, 1) - math.exp(e) * density(x, -1)),
            -10,
            10,
            points=[0.0, 1.0],
            limit=200,
        )[0]
        assert pair <= profile(Gaussian(noise_multiplier=z), epsilon)
        assert pair >= 0.01 * profile(Gaussian(noise_multiplier=z), epsilon)
