"""Every frequency oracle: its exact law (LDP, supports), its estimator, its variance, its two ways.

A new oracle is in `ORACLES` and inherits all of this.
"""

import itertools
import math

import numpy as np
import pytest

from fedsim.errors import ConfigError
from privacy.frequency_oracles import ORACLES, choose, subset, worst_ratio
from privacy.frequency_oracles.coins import flips, keyed, system

EPSILONS = (0.1, 1.0, 3.0, 8.0)
SIZES = (1, 2, 4, 7)

each = pytest.mark.parametrize("name", ORACLES)


@each
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_exact_audit(name, size, epsilon):
    """All inputs, the out-of-domain one among them; all reports, silence among them."""
    oracle = ORACLES[name](epsilon, np.arange(size) * 3 + 5)
    law = oracle.pmf()
    assert law.shape[0] == size + 1
    assert np.abs(law.sum(axis=1) - 1).max() < 1e-12
    assert (law[:, -1] == 0).all()
    ratio = worst_ratio(law)
    assert ratio <= math.exp(epsilon) * (1 + 1e-9)
    if size > 1:  # the budget is spent, too: an oracle that wastes it is a wrong one
        assert ratio >= math.exp(epsilon) * (1 - 1e-9)


@each
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_supports_have_the_probabilities_that_the_estimator_takes(name, epsilon):
    oracle = ORACLES[name](epsilon, np.arange(5))
    supported = oracle.pmf()[:, :-1] @ oracle.outcomes()
    expected = np.where(np.eye(6, dtype=bool)[:, :5], oracle.p, oracle.q)
    # Of hash functions, 64 are enumerated, and two values collide in 1/g of them only on average.
    assert np.abs(supported - expected).max() < (0.3 if name == "olh" else 1e-12)


VALUES = np.random.default_rng(0).integers(0, 40, 4000)
CANDIDATES = np.random.default_rng(1).permutation(32)


@each
def test_unbiased_with_the_variance_that_is_said(name, monkeypatch):
    """200 sums of 4,000 reports, a fifth of them out of the domain of 32."""
    monkeypatch.setattr(subset, "_SLOWER", 0)  # the sum is drawn by symbols, as for many users
    oracle = ORACLES[name](1.0, CANDIDATES)
    n, runs = len(VALUES), 200
    estimates = np.array(
        [oracle.estimate(oracle.total(VALUES, keyed(0, 0, run, "t")), n) for run in range(runs)]
    )
    true = np.bincount(VALUES, minlength=40)[CANDIDATES] / n
    variance = oracle.variance(n, true)
    assert (np.abs(estimates.mean(axis=0) - true) < 4 * np.sqrt(variance / runs)).all()
    # 32 variances of 200 runs: their mean is within 2 % of the truth (one sigma).
    assert (estimates.var(axis=0, ddof=1) / variance).mean() == pytest.approx(1, abs=0.1)


@each
@pytest.mark.parametrize("coins", [lambda: keyed(3, 0, 0, "t"), system], ids=["keyed", "system"])
def test_reports_one_by_one_have_the_exact_law(name, coins):
    """20,000 reports each of a candidate and of ⊥ beside the enumerated law of their supports."""
    oracle = ORACLES[name](1.0, np.array([8, 3, 6]))
    law, outcomes = oracle.pmf(), oracle.outcomes()
    n = 20_000
    for row, value in ((1, 3), (3, 4)):
        reports = oracle.reports(np.full(n, value), coins())
        assert len(reports) == n
        counts = oracle.supports(reports)
        expected = law[row, :-1] @ outcomes if name != "olh" else np.full(3, oracle.q)
        if name == "olh" and row == 1:
            expected[1] = oracle.p
        assert np.abs(counts / n - expected).max() < 5 * math.sqrt(0.25 / n)


@each
def test_the_sum_is_that_of_single_reports(name, monkeypatch):
    """`total` may take a shortcut; two samples of 500 sums, by means, spread, correlations."""
    monkeypatch.setattr(subset, "_SLOWER", 0)
    oracle = ORACLES[name](1.0, np.arange(4))
    values = np.array([0] * 20 + [2] * 10 + [9] * 10)
    long = np.array(
        [oracle.supports(oracle.reports(values, keyed(0, 1, i, "a"))) for i in range(500)]
    )
    short = np.array([oracle.total(values, keyed(0, 1, i, "b")) for i in range(500)])
    scale = np.sqrt((long.var(axis=0) + short.var(axis=0)) / 500)
    assert (np.abs(long.mean(axis=0) - short.mean(axis=0)) < 4.5 * scale).all()
    assert long.var(axis=0) / short.var(axis=0) == pytest.approx(np.ones(4), abs=0.35)

    def correlations(sums):
        return np.corrcoef(sums.T)[np.triu_indices(4, 1)]

    assert np.abs(correlations(long) - correlations(short)).max() < 0.25


@each
def test_without_noise_counts_are_exact(name):
    oracle = ORACLES[name](30.0, np.arange(32))
    n = 4000
    true = np.bincount(VALUES, minlength=40)[:32] / n
    estimate = oracle.estimate(oracle.total(VALUES, keyed(0, 0, 0, "t")), n)
    # Some keep a coin: OUE for the bit that is set, Hadamard for half of the domain, OLH for values
    # that collide, SUE at e^(eps/2).
    noise = 5 * math.sqrt(float(np.max(oracle.variance(n, true))))
    assert np.abs(estimate - true).max() <= max(noise, 1e-6)
    assert noise < 0.1


def test_auto_takes_the_least_variance():
    for epsilon in (0.5, 1.0, 2.0, 4.0):
        for size in (2, 8, 32, 128):
            chosen = choose("auto", epsilon, np.arange(size))
            made = [oracle(epsilon, np.arange(size)) for oracle in ORACLES.values()]
            least = min(oracle.variance(1) for oracle in made)
            assert chosen.variance(1) <= 1.02 * least
    # k-RR wins where D + 1 symbols are fewer than 3 e^eps + 2.
    assert choose("auto", 3.0, np.arange(4)).name == "krr"
    assert choose("auto", 0.5, np.arange(64)).name != "krr"


def test_the_formulas_of_the_literature():
    """By hand: k-RR on D + 1 symbols, (D - 1 + e^eps)/(e^eps - 1)^2; OUE 4 e^eps/(e^eps - 1)^2."""
    e = math.exp(1.5)
    assert choose("krr", 1.5, np.arange(9)).variance(1) == pytest.approx((8 + e) / (e - 1) ** 2)
    for name in ("oue", "olh"):
        assert choose(name, 1.5, np.arange(9)).variance(1) == pytest.approx(
            4 * e / (e - 1) ** 2, rel=0.01
        )


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="epsilon: 0"):
        choose("krr", 0, np.arange(3))
    with pytest.raises(ConfigError, match="one or more"):
        choose("krr", 1.0, np.arange(0))
    with pytest.raises(ConfigError, match="fewer candidates"):
        choose("oue", 1.0, np.arange(40)).pmf()


def test_a_mechanism_that_drops_out_of_domain_users_fails_the_audit():
    """What public code does: no report from users without a candidate."""
    law = choose("krr", 1.0, np.arange(4)).pmf()
    law[-1] = 0
    law[-1, -1] = 1
    assert worst_ratio(law) == math.inf


class Scripted:
    """Coins of which all words of a length come, once each."""

    def __init__(self, *bytes_of_draws):
        self.draws = list(bytes_of_draws)

    def words(self, size):
        drawn = self.draws.pop(0)
        assert len(drawn) == size * 8
        return drawn.view(np.uint64)


def test_a_flip_has_its_probability_to_the_last_digit():
    """chance = (77 + 3/256)/256: of 65,536 pairs of bytes, 77 * 256 + 3 are heads."""
    first = np.repeat(np.arange(256, dtype=np.uint8), 256)
    heads = flips(Scripted(first, np.arange(256, dtype=np.uint8)), 2**16, (77 + 3 / 256) / 256)
    assert heads.sum() == 77 * 256 + 3
    assert flips(keyed(0, 0, 0, "t"), 1000, 1.0).all()
    assert not flips(keyed(0, 0, 0, "t"), 1000, 0.0).any()
    # Far below the 2**-53 of a uniform number: seven bytes of 0 go before the one that decides.
    zeros = [np.zeros(8, np.uint8)] * 7
    last = np.array([0, 4, 5, 6, 255, 255, 255, 255], np.uint8)
    heads = flips(Scripted(*zeros, last), 8, 5 * 2.0**-64)
    assert heads.tolist() == [True, True, *[False] * 6]


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "olh"])
def test_the_audit_holds_where_a_uniform_number_is_too_coarse(name):
    """At epsilon 40; of OLH, the e^20 hash values cannot be enumerated."""
    ratio = worst_ratio(ORACLES[name](40.0, np.arange(4)).pmf())
    assert ratio == pytest.approx(math.exp(40.0), rel=1e-9)


def test_a_sum_counts_what_a_uniform_number_is_too_coarse_for():
    coins, many = keyed(0, 0, 0, "t"), np.full((500, 3), 2**45)
    drawn = coins.binomial(many, np.array([4.0, 0.0, 2.0]) * 2.0**-44)  # means 8, 0, 4
    assert np.abs(drawn.mean(axis=0) - [8, 0, 4]).max() < 0.5
    drawn = coins.binomial(np.full(2000, 2**62), 2.0**-60)
    assert abs(drawn.mean() - 4) < 4 * 2 / 2000**0.5 and abs(drawn.var() - 4) < 0.6
    oracle = ORACLES["sue"](80.0, np.arange(2))  # 1 − p is not told apart from 1
    assert oracle.p == 1.0 and 0 < oracle.missed < 1e-17
    held = keyed(0, 0, 1, "t").binomial(np.full(100, 2**60), oracle.missed)
    assert abs(held.mean() - 2**60 * oracle.missed) < 4 * (2**60 * oracle.missed / 100) ** 0.5


@pytest.mark.parametrize("coins", [lambda: keyed(3, 0, 0, "t"), system], ids=["keyed", "system"])
def test_whole_numbers_are_uniform(coins):
    drawn = coins().below(30_000, 3)
    assert (np.abs(np.bincount(drawn, minlength=3) - 10_000) < 450).all()


@pytest.mark.parametrize("value", [2, 9], ids=["a candidate", "out of the domain"])
def test_sets_have_the_exact_law(value):
    """Sets of 3 of 7 symbols, each beside its enumerated probability."""
    oracle, n = ORACLES["subset"](0.3, np.arange(6)), 40_000
    assert oracle.omega == 3
    reports = oracle.reports(np.full(n, value), keyed(0, 0, 0, "t"))
    assert (np.bitwise_count(reports) == 3).all()
    codes = reports[:, 0]
    sets = itertools.combinations(range(7), 3)
    counts = np.array([(codes == sum(2**v for v in one)).sum() for one in sets])
    law = oracle.pmf()[min(value, 6), :-1]
    assert (np.abs(counts / n - law) < 4.5 * np.sqrt(law / n)).all()


def test_sets_of_more_symbols_than_a_word_has_bits():
    """27 of 100: how often each is in, and how pairs go together, in sets with the value."""
    oracle, n = ORACLES["subset"](1.0, np.arange(99)), 40_000
    reports = oracle.reports(np.full(n, 70), keyed(0, 0, 7, "t"))
    bits = np.unpackbits(reports.view(np.uint8), axis=1, bitorder="little").astype(float)
    assert oracle.omega == 27 and (bits.sum(axis=1) == 27).all() and not bits[:, 100:].any()
    inside, others = bits[:, 70] == 1, np.delete(bits[:, :100], 70, axis=1)
    assert abs(inside.mean() - oracle.p) < 4.5 * math.sqrt(oracle.p * oracle.left / n)
    sigma = math.sqrt(oracle.q * (1 - oracle.q) / n)
    assert np.abs(others.mean(axis=0) - oracle.q).max() < 4.5 * sigma
    pairs = np.cov(others[inside].T)[np.triu_indices(99, 1)]
    share = 26 / 99
    sigma = share * (1 - share) / math.sqrt(inside.sum())
    assert np.abs(pairs + share * (1 - share) / 98).max() < 5 * sigma  # of 4851
    assert pairs.std() == pytest.approx(sigma, rel=0.1)
