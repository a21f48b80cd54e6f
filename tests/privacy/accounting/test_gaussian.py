"""The closed form of Gaussian compositions, against the published list and against quadrature."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from privacy.accounting.gaussian import gaussian_delta, gaussian_epsilon

PUBLISHED = [
    (1, 1, 1e-5, 4.377178),
    (10, 5, 1e-5, 2.594383),
    (50, 10, 1e-5, 2.943225),
    (100, 4, 1e-5, 13.206712),
    (100, 20, 1e-5, 1.993091),
    (1000, 50, 1e-6, 2.921601),
]


@pytest.mark.parametrize(("count", "z", "delta", "epsilon"), PUBLISHED)
def test_published_values(count, z, delta, epsilon):
    assert gaussian_epsilon(math.sqrt(count) / z, delta) == pytest.approx(epsilon, abs=6e-7)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_delta_is_the_hockey_stick_integral(mu, epsilon):
    def integrand(x):
        return max(0.0, norm.pdf(x - mu) - math.exp(epsilon) * norm.pdf(x))

    crossing = epsilon / mu + mu / 2
    exact = quad(integrand, crossing, crossing + 12, epsabs=1e-14)[0]
    assert float(gaussian_delta(mu, epsilon)) == pytest.approx(exact, rel=1e-7, abs=1e-13)


def test_the_ends():
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_epsilon(1e-6, 1e-5) == 0  # total variation is already below delta
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(200.0, 1e-5) == pytest.approx(20851.9887, abs=1e-3)
    assert np.isfinite(gaussian_delta(200.0, np.array([0.0, 1e3, 1e5]))).all()


@pytest.mark.parametrize("delta", [0.3, 1e-3, 1e-9, 1e-15, 1e-40])
@pytest.mark.parametrize("mu", [0.01, 1.0, 10.0])
def test_epsilon_inverts_delta_from_above(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    at = float(gaussian_delta(mu, epsilon))
    assert at <= delta
    assert epsilon == 0 or at == pytest.approx(delta, rel=1e-6)
