"""The loss distributions: never below the truth at any delta; Laplace and pure DP exact."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as theirs

from fedsim.errors import ConfigError
from privacy.accounting import pld
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.events import Event, Gaussian, Laplace, Poisson, Unsampled
from tests.privacy._events import ADD, REPLACE, gaussian, laplace, poisson, pure


@pytest.mark.parametrize("delta", [1e-5, 1e-9, 1e-11])
@pytest.mark.parametrize(
    ("z", "count"),
    [(5, 10), (50, 1000), (3, 1000), pytest.param(0.5, 10_000, marks=pytest.mark.nightly)],
)
def test_never_below_the_closed_form(z, count, delta):
    """At (3, 1000) and delta = 1e-9 the rounding of the transform alone would be 6e-5 below it."""
    events = (gaussian(float(z), count),)
    exact = gaussian_epsilon(math.sqrt(count) / z, delta)
    found = pld.pld_epsilon(events, delta, ADD)
    assert exact <= found <= exact * (1 + (2e-3 if delta < 1e-10 else 2e-4))


def test_a_finer_grid_is_tighter_and_every_grid_is_an_upper_bound():
    events, exact = (gaussian(5.0, 10),), gaussian_epsilon(math.sqrt(10) / 5, 1e-5)
    found = [pld.epsilon_on_grid(events, 1e-5, ADD, grid) for grid in (1e-2, 1e-3, 1e-4)]
    assert found == sorted(found, reverse=True)
    assert exact < found[-1]


def test_the_grid_is_published_and_coarser_only_in_the_hundreds():
    assert pld.grid_for((poisson(1.0, 0.01, 1000),), 1e-5, ADD) == pld.GRID
    assert pld.grid_for((gaussian(3.0, 1000),), 1e-5, ADD) == pld.GRID
    assert pld.grid_for((gaussian(0.5, 10_000),), 1e-5, ADD) > pld.GRID


def test_a_delta_beyond_floating_point_is_refused():
    with pytest.raises(ConfigError, match="too small"):
        pld.pld_epsilon((poisson(1.0, 0.1),), 1e-12, ADD)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize(("relation", "sensitivity"), [(ADD, 1.0), (REPLACE, 2.0)])
def test_one_laplace_release_is_its_closed_form(scale, relation, sensitivity):
    """delta(e) = 1 - exp((e - sensitivity / scale) / 2)."""
    exact = sensitivity / scale + 2 * math.log1p(-1e-5)
    assert pld.pld_epsilon((laplace(scale),), 1e-5, relation) == pytest.approx(exact, abs=1e-4)


def test_an_l1_bound_spread_over_coordinates_costs_no_more_than_in_one():
    """Laplace noise is accounted in one dimension; no split of the norm may be worse."""
    one = theirs.from_laplace_mechanism(1.0)
    for first in (0.5, 0.2, 0.05):
        split = theirs.from_laplace_mechanism(1.0, sensitivity=first).compose(
            theirs.from_laplace_mechanism(1.0, sensitivity=1 - first)
        )
        for epsilon in np.linspace(0, 0.99, 12):
            assert split.get_delta_for_epsilon(epsilon) <= one.get_delta_for_epsilon(epsilon) + 1e-9


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_one_poisson_sampled_gaussian_is_its_integral(rate):
    """Removal: P = (1-q) N(0) + q N(1) against Q = N(0), by the set on which P > e^epsilon Q."""
    from scipy.stats import norm

    z, epsilon = 0.8, 0.4
    loss = pld.single(Gaussian(noise_multiplier=z), Poisson(rate=rate), ADD, 1e-4)
    x = z * z * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
    p = (1 - rate) * norm.sf(x / z) + rate * norm.sf((x - 1) / z)
    exact = p - math.exp(epsilon) * norm.sf(x / z)
    assert loss.get_delta_for_epsilon(epsilon) == pytest.approx(exact, rel=1e-5)


def test_pure_dp_is_randomised_response():
    epsilon = 0.73005  # not on the grid
    loss = pld.pure_pmf(epsilon, 1e-4)
    for at in (0.0, 0.2, 0.7):
        exact = (math.exp(epsilon) - math.exp(at)) / (1 + math.exp(epsilon))
        assert loss.get_delta_for_epsilon(at) == pytest.approx(exact, rel=1e-12)


def test_composed_pure_dp_is_the_binomial_formula():
    """Kairouz, Oh, Viswanath: the optimal composition of k epsilon-DP mechanisms."""
    from scipy.stats import binom

    epsilon, k, target = 0.1, 40, 1e-6
    spent = pld.pld_epsilon((pure(epsilon, k),), target, ADD)
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    heads = np.arange(k + 1)
    loss = epsilon * (2 * heads - k)
    delta = np.dot(binom.pmf(heads, k, p), np.maximum(0, -np.expm1(spent - loss)))
    assert delta == pytest.approx(target, rel=2e-3)
    assert delta <= target * (1 + 1e-9)


def test_no_loss_distribution_of_integer_noise_is_made_up():
    from privacy.events import Skellam

    with pytest.raises(ConfigError, match="not known"):
        pld.single(Skellam(variance=9.0, l1_norm=1.0, l2_norm=1.0), Unsampled(), ADD, 1e-4)


def test_poisson_sampled_laplace_amplifies():
    event = Event(mechanism=Laplace(scale=1.0), sampling=Poisson(rate=0.1))
    spent = pld.pld_epsilon((event,), 1e-9, ADD)
    assert spent == pytest.approx(math.log1p(0.1 * math.expm1(1.0)), abs=2e-4)
