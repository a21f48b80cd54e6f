"""Amplification at delta = 0."""

import math

import pytest

from privacy.accounting.pure import amplified, pure_epsilon
from privacy.events import FixedSize, Gaussian, Laplace, Poisson, PureDP, Unsampled
from tests.privacy._events import ADD, REPLACE


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 1.0, 20.0, 29.9, 30.1, 100.0, 1e4])
@pytest.mark.parametrize("rate", [1e-6, 0.3, 1.0])
def test_amplification_without_overflow(epsilon, rate):
    if epsilon < 700:
        exact = math.log1p(rate * math.expm1(epsilon))
    else:
        exact = epsilon + math.log(rate)
    assert amplified(epsilon, rate) == pytest.approx(exact, rel=1e-12)
    assert amplified(epsilon, rate) <= epsilon * (1 + 1e-15)


def test_which_sampling_amplifies_under_which_relation():
    tenth = math.log1p(0.1 * math.expm1(1.0))
    pure, laplace = PureDP(epsilon=1.0), Laplace(scale=2.0)
    coins, subset = Poisson(rate=0.1), FixedSize(size=1, population=10)
    assert pure_epsilon(pure, coins, ADD) == pytest.approx(tenth)
    assert pure_epsilon(pure, subset, REPLACE) == pytest.approx(tenth)
    assert pure_epsilon(laplace, subset, REPLACE) == pytest.approx(tenth)
    assert pure_epsilon(laplace, coins, ADD) == pytest.approx(math.log1p(0.1 * math.expm1(0.5)))
    assert pure_epsilon(pure, coins, REPLACE) is None
    assert pure_epsilon(pure, subset, ADD) is None
    assert pure_epsilon(pure, Unsampled(), REPLACE) == 1.0
    assert pure_epsilon(laplace, Unsampled(), REPLACE) == 1.0
    assert pure_epsilon(Gaussian(noise_multiplier=1.0), Unsampled(), ADD) is None
    assert pure_epsilon(Laplace(scale=0.0), Unsampled(), ADD) == math.inf


def test_amplification_is_exact_for_randomised_response():
    """A binary reply, of which a unit's coin decides whether it is asked: likelihood ratios."""
    epsilon, rate = 1.2, 0.25
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    # Present: the truth with p; absent or not drawn: the other answer's distribution.
    present = rate * p + (1 - rate) * (1 - p)
    assert math.log(present / (1 - p)) == pytest.approx(amplified(epsilon, rate), rel=1e-12)
