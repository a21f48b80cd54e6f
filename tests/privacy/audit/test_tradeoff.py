"""Trade-off curves: the accountant's oracles, hand-computed points, dp-accounting's profile."""

import numpy as np
import pytest
from scipy.stats import norm

from fedsim.errors import ConfigError
from privacy.audit.tradeoff import gdp_delta, gdp_epsilon, gdp_mu, gdp_tpr, profile_tpr


@pytest.mark.parametrize(
    ("rounds", "noise", "delta", "epsilon"),
    [
        (1, 1, 1e-5, 4.377178),
        (10, 5, 1e-5, 2.594383),
        (50, 10, 1e-5, 2.943225),
        (100, 4, 1e-5, 13.206712),
        (100, 20, 1e-5, 1.993091),
        (1000, 50, 1e-6, 2.921601),
    ],
)
def test_composed_gaussians(rounds: int, noise: float, delta: float, epsilon: float) -> None:
    mu = np.sqrt(rounds) / noise
    assert gdp_epsilon(delta, mu) == pytest.approx(epsilon, abs=5e-7)
    assert gdp_mu(epsilon, delta) == pytest.approx(mu, abs=1e-6)


def test_the_ends() -> None:
    assert gdp_epsilon(1e-5, 0.0) == 0.0
    assert gdp_epsilon(0.0, 1.0) == np.inf
    assert gdp_mu(3.0, 0.0) == 0.0
    assert gdp_delta(0.0, 2.0) == pytest.approx(2 * norm.cdf(1) - 1, abs=1e-15)
    assert 0 <= gdp_delta(800.0, 1.0) < 1e-300
    with pytest.raises(ConfigError, match="delta"):
        gdp_epsilon(1.0, 1.0)


def test_a_profile_of_one_point_by_hand() -> None:
    """(ln 2, 0.1): TPR(0.2) <= min(2·0.2 + 0.1, 1 − (1 − 0.1 − 0.2)/2) = 0.5."""
    tpr = profile_tpr(np.array([0.0, 0.2, 0.8]), np.array([np.log(2)]), np.array([0.1]))
    np.testing.assert_allclose(tpr, [0.1, 0.5, 0.95], atol=1e-15)


def test_the_accountants_profile_gives_the_gaussian_curve() -> None:
    from dp_accounting.pld import privacy_loss_distribution

    pld = privacy_loss_distribution.from_gaussian_mechanism(1.0, value_discretization_interval=1e-3)
    epsilon = np.linspace(0, 10, 2001)
    delta = np.array(pld.get_delta_for_epsilon(epsilon))
    fpr = np.array([1e-3, 1e-2, 0.3])
    bound, exact = profile_tpr(fpr, epsilon, delta), gdp_tpr(fpr, 1.0)
    assert (bound >= exact - 1e-12).all()
    np.testing.assert_allclose(bound, exact, atol=2e-3)
