import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ConfigError
from fedsim.participation.uniform import Uniform


def test_every_set_of_the_size_is_equally_likely(population):
    # 10 pairs of 5 clients in 3,000 independent rounds: chi-square with 9 degrees of freedom.
    schedule = Uniform(clients_per_round=2).bind(population(5))
    seen = dict.fromkeys(combinations(range(5), 2), 0)
    for t in range(1, 3001):
        seen[tuple(schedule.select(t).tolist())] += 1
    assert stats.chisquare(list(seen.values())).pvalue > 1e-5


def test_long_run_rate(population):
    # Counts of 40 clients over 2,000 rounds of 10: mean 500, variance 2000 * 1/4 * 3/4 = 375 and a
    # fixed sum, so sum (count - 500)^2 / (375 * 40/39) is chi-square with 39 degrees of freedom.
    schedule = Uniform(clients_per_round=10).bind(population(40))
    cohorts = [schedule.select(t) for t in range(1, 2001)]
    assert all(len(cohort) == 10 for cohort in cohorts)
    count = np.bincount(np.concatenate(cohorts), minlength=40)
    chi2 = ((count - 500) ** 2).sum() / (375 * 40 / 39)
    assert stats.chi2(39).ppf(1e-5) < chi2 < stats.chi2(39).isf(1e-5)
    assert schedule.rates().tolist() == [0.25] * 40


def test_ten_million_clients_cost_only_the_cohort(population):
    schedule = Uniform(clients_per_round=50).bind(population(10**7))
    tracemalloc.start()
    cohorts = [schedule.select(t) for t in range(1, 20)]
    assert schedule.rates()[0] == 5e-6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
    assert all(len(cohort) == 50 for cohort in cohorts)
    assert max(cohort[-1] for cohort in cohorts) > 9 * 10**6


@pytest.mark.parametrize(
    ("fraction", "num_clients", "size"), [(0.1, 30, 3), (0.29, 100, 29), (0.001, 30, 1), (1, 7, 7)]
)
def test_fraction(fraction, num_clients, size, population):
    part = Uniform(clients_per_round=None, fraction=fraction)
    assert len(part.bind(population(num_clients)).select(1)) == size


def test_exactly_one_of_the_two_fields():
    with pytest.raises(ConfigError, match=r"^clients_per_round: null"):
        Uniform(clients_per_round=None)
    with pytest.raises(ConfigError, match=r"^fraction: 0.1 .*clients_per_round=null beside"):
        Uniform(fraction=0.1)


def test_more_than_everyone(population):
    assert len(Uniform(clients_per_round=10).bind(population(10)).select(1)) == 10
    with pytest.raises(ConfigError, match=r"^clients_per_round: 10 .* 9 .*\[1, 9\].*=full"):
        Uniform(clients_per_round=10).bind(population(9))
