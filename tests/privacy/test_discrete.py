import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from fedsim.errors import ConfigError
from privacy import discrete
from privacy.discrete import (
    Words,
    bernoulli_exp,
    discrete_gaussian,
    discrete_laplace,
    poisson,
    release_on_lattice,
    skellam,
    uniform_below,
)
from privacy.normal import keyed, system

Z = 4.417  # 1e-5 false alarms
N = 100_000
INVERSE_E = Fraction("0.36787944117144232159552377016146086744581113103")


def words(purpose: str = "discrete") -> Words:
    return keyed(0, 1, 0, purpose).words


def pmf(log_weight: Callable[[NDArray[np.int64]], NDArray[np.float64]], reach: int) -> np.ndarray:
    weight = np.exp(log_weight(np.arange(-reach, reach + 1)))
    return weight / weight.sum()


LAWS = {
    "gaussian 0.3": (lambda w, n: discrete_gaussian(w, 0.3, n), lambda x: -(x**2) / 0.18, 30),
    "gaussian 1": (lambda w, n: discrete_gaussian(w, 1.0, n), lambda x: -(x**2) / 2, 60),
    "gaussian 5.5": (lambda w, n: discrete_gaussian(w, 5.5, n), lambda x: -(x**2) / 60.5, 200),
    "gaussian 300": (lambda w, n: discrete_gaussian(w, 300, n), lambda x: -(x**2) / 1.8e5, 9000),
    "laplace 1/2": (
        lambda w, n: discrete_laplace(w, Fraction(1, 2), n),
        lambda x: -2.0 * abs(x),
        60,
    ),
    "laplace 4": (lambda w, n: discrete_laplace(w, 4, n), lambda x: -abs(x) / 4, 400),
    "laplace 3/2": (lambda w, n: discrete_laplace(w, 1.5, n), lambda x: -abs(x) / 1.5, 150),
    "skellam 0.5": (
        lambda w, n: skellam(w, 0.5, n),
        lambda x: np.log(special.ive(abs(x), 0.5)),
        30,
    ),
    "skellam 20": (lambda w, n: skellam(w, 20, n), lambda x: np.log(special.ive(abs(x), 20)), 90),
    "poisson 0.7": (
        lambda w, n: poisson(w, 0.7, n),
        lambda x: stats.poisson(0.7).logpmf(x),
        60,
    ),
    "poisson 900": (
        lambda w, n: poisson(w, 900.0, n),
        lambda x: stats.poisson(900.0).logpmf(x),
        2000,
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_every_law_by_chi_square_mean_and_variance(law: str) -> None:
    sample, log_weight, reach = LAWS[law]
    draws = sample(words(law), N)
    assert draws.dtype == np.int64
    mass, x = pmf(log_weight, reach), np.arange(-reach, reach + 1)
    # Neighbouring values are pooled until a cell expects at least 20.
    cell = (np.cumsum(mass) * N / 20).astype(int)
    expected = np.bincount(cell, weights=mass * N)
    seen = np.bincount(cell[draws + reach], minlength=expected.size)
    expected, seen = expected[expected > 0], seen[np.bincount(cell, weights=mass * N) > 0]
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-5
    mean = mass @ x
    variance = mass @ (x - mean) ** 2
    fourth = mass @ (x - mean) ** 4
    assert abs(draws.mean() - mean) <= Z * math.sqrt(variance / N)
    spread = math.sqrt((fourth - variance**2) / N)
    assert abs(((draws - mean) ** 2).mean() - variance) <= Z * spread


def test_the_chi_square_notices_a_rounded_normal() -> None:
    """The control: rounding a continuous Gaussian is not the discrete one where sigma is small."""
    sigma = 0.5
    rounded = np.rint(sigma * keyed(0, 1, 0, "control").normal(N).numpy()).astype(int)
    mass = pmf(lambda x: -(x**2) / (2 * sigma**2), 20)
    seen = np.bincount(rounded + 20, minlength=41)[18:23]
    expected = mass[18:23] / mass[18:23].sum() * seen.sum()
    assert stats.chisquare(seen, expected).pvalue < 1e-5


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.5, 1000.0])
def test_the_variance_is_at_most_sigma_squared(sigma: float) -> None:
    top, bottom = discrete.rational_square(sigma)
    assert 0 <= Fraction(top, bottom) / Fraction(sigma) ** 2 - 1 < 2**-30
    x = np.arange(-40 * math.ceil(sigma), 40 * math.ceil(sigma) + 1)
    mass = pmf(lambda v: -(v**2) / (2 * sigma**2), 40 * math.ceil(sigma))
    assert mass @ x**2 <= sigma**2 * (1 + 1e-9)


def test_the_systems_words_give_the_same_laws() -> None:
    source = system().words
    for draws, variance in (
        (discrete_gaussian(source, 3.0, N), 9.0),
        (skellam(source, 8.0, N), 8.0),
        (discrete_laplace(source, 2, N), 2 * math.exp(0.5) / (math.exp(0.5) - 1) ** 2),
    ):
        fourth = (draws.astype(float) ** 4).mean()
        assert abs(draws.mean()) <= Z * math.sqrt(variance / N)
        assert abs((draws**2).mean() - variance) <= 1.05 * Z * math.sqrt(fourth / N)


def test_the_slow_decision_agrees_with_the_fast_one() -> None:
    """A wide slack sends every coin to the exact comparison; no answer changes."""
    exponent = np.linspace(0, 3, 2001)
    exact = [Fraction(float(x)) for x in exponent]
    fast = bernoulli_exp(words(), exponent, exact.__getitem__)
    slow = bernoulli_exp(words(), exponent, exact.__getitem__, slack=1.0)
    assert (fast == slow).all()
    assert fast[0]  # exp(0) = 1


def test_open_bits_are_drawn_until_the_coin_is_decided() -> None:
    """u's first 53 bits are those of exp(-1): only the next word tells, by the digits of 1/e."""
    prefix = math.floor(INVERSE_E * 2**53)
    threshold = int((INVERSE_E * 2**53 - prefix) * 2**64)
    for word, heads in ((threshold - 1000, True), (threshold + 1000, False)):
        queue = [prefix << 11, word]
        source = lambda n, q=queue: np.array([q.pop(0) for _ in range(n)], dtype=np.uint64)  # noqa: E731
        assert bernoulli_exp(source, np.ones(1), lambda _: Fraction(1))[0] == heads
        assert not queue


def test_open_bits_of_a_poisson_are_decided_exactly() -> None:
    """P[X <= 0] = 1/e for rate 1; u beside it is 0 or 1 by its next word."""
    prefix = math.floor(INVERSE_E * 2**53)
    threshold = int((INVERSE_E * 2**53 - prefix) * 2**64)
    for word, value in ((threshold - 1000, 0), (threshold + 1000, 1)):
        queue = [prefix << 11, word]
        source = lambda n, q=queue: np.array([q.pop(0) for _ in range(n)], dtype=np.uint64)  # noqa: E731
        assert poisson(source, 1.0, 1).tolist() == [value]
        assert not queue


def test_the_table_of_a_poisson_is_as_exact_as_it_says() -> None:
    for rate in (0.01, 3.3, 1000.0, 250_000.0):
        start, below, slack = discrete._poisson_table(rate)
        reference = stats.poisson(rate).cdf(np.arange(start, start + below.size - 1))
        assert np.abs(below[1:] - reference).max() < 1e-9  # SciPy's own error
        assert slack < 1e-12
        assert below[0] == 0 and below[-1] == 1


def test_uniform_below_is_uniform_and_in_range() -> None:
    assert not uniform_below(words(), 1, 5).any()
    for bound in (2, 3, 10, 37):
        draws = uniform_below(words(f"below {bound}"), bound, 50_000)
        seen = np.bincount(draws, minlength=bound)
        assert seen.size == bound
        assert stats.chisquare(seen).pvalue > 1e-5
    assert uniform_below(words(), 2**62, 1000).max() < 2**62
    with pytest.raises(ConfigError, match="bound"):
        uniform_below(words(), 0, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: discrete_gaussian(words(), 0.0, 1),
        lambda: discrete_gaussian(words(), 2.0**21, 1),
        lambda: discrete_laplace(words(), 0, 1),
        lambda: poisson(words(), 0.0, 1),
        lambda: poisson(words(), 1e12, 1),
        lambda: release_on_lattice(np.zeros(1), 1.0, 0.1, words()),
        lambda: release_on_lattice(np.array([1e12]), 1.0, 2.0**-20, words()),
        lambda: release_on_lattice(np.array([math.nan]), 1.0, 2.0**-20, words()),
    ],
)
def test_what_cannot_be_sampled_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parametrize("sigma", [2.0**-10, 0.05, 2.0**20])
def test_the_ends_of_the_range(sigma: float) -> None:
    draws = discrete_gaussian(words(), sigma, 2000)
    assert np.abs(draws).max() <= 6 * sigma + (sigma > 0.01)
    assert (sigma > 1) == bool(draws.std() > 0.9 * sigma > 1)


def off_lattice(values: NDArray[np.float64], spacing: float) -> int:
    return int((np.rint(values / spacing) * spacing != values).sum())


def test_discrete_outputs_lie_on_one_lattice_whatever_the_data() -> None:
    """Row 18: 0 of 1e5 outputs on D and on D' off the lattice; a float Gaussian must fail."""
    spacing = 2.0**-24
    for value in (0.0, 1.0, 1 / 3, -7.123456789):
        released = release_on_lattice(np.full(N, value), 0.01, spacing, words(f"{value}"))
        assert off_lattice(released, spacing) == 0
        assert abs(released.mean() - value) <= Z * 0.01 / math.sqrt(N) + spacing
        assert released.std() == pytest.approx(0.01, rel=0.01)


def test_the_value_goes_to_the_nearest_point_of_the_lattice() -> None:
    values = np.array([0.74, 0.76, -0.6, -0.2, 3.0])
    released = release_on_lattice(values, 2.0**-11, 0.5, words())  # of noise that is all zeros
    assert released.tolist() == [0.5, 1.0, -0.5, 0.0, 3.0]


def test_a_floating_point_gaussian_betrays_its_data() -> None:
    """The negative control: on D = 0 the outputs have bits that no output on D' = 1 can have."""
    noise = 0.01 * keyed(0, 1, 0, "control").normal(N, dtype=torch.float64).numpy()
    assert off_lattice(1.0 + noise, 2.0**-53) == 0
    assert off_lattice(0.0 + noise, 2.0**-53) > N // 2
