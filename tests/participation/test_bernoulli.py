import tracemalloc

import numpy as np
import pytest

from fedsim.participation.bernoulli import Bernoulli, BernoulliSchedule, EqualBernoulliSchedule

ROUNDS = 4000
P = np.array([0.02, 0.1, 0.5, 0.9, 1.0])


def masks(schedule, rounds=ROUNDS):
    mask_TN = np.zeros((rounds, len(schedule.rates())), bool)
    for t in range(rounds):
        mask_TN[t, schedule.select(t + 1)] = True
    return mask_TN


def test_each_client_has_its_own_long_run_rate():
    # Binomial counts: 4.417 standard errors, one false alarm in 1e5.
    mean_N = masks(BernoulliSchedule(P, seed=0)).mean(axis=0)
    assert (np.abs(mean_N - P) <= 4.417 * np.sqrt(P * (1 - P) / ROUNDS)).all()


@pytest.mark.parametrize("schedule_class", [BernoulliSchedule, EqualBernoulliSchedule])
def test_equal_rates_have_one_law_in_either_form(schedule_class):
    # p = .3, 4 clients. Marginal p; pairs p^2 (independence within a round); lag one p^2
    # (independence over rounds); cohort of k: binomial(4, p). Each a binomial frequency.
    mask_TN = masks(schedule_class(np.full(4, 0.3), seed=3))

    def close(frequency, chance, draws=ROUNDS):
        return abs(frequency - chance) < 4.417 * np.sqrt(chance * (1 - chance) / draws)

    for n in range(4):
        assert close(mask_TN[:, n].mean(), 0.3)
        assert close((mask_TN[0::2, n] & mask_TN[1::2, n]).mean(), 0.09, ROUNDS // 2)
        for m in range(n):
            assert close((mask_TN[:, n] & mask_TN[:, m]).mean(), 0.09)
    size_T = mask_TN.sum(axis=1)
    for size, chance in enumerate([0.2401, 0.4116, 0.2646, 0.0756, 0.0081]):
        assert close((size_T == size).mean(), chance)


def test_rounds_may_be_empty(population):
    schedule = Bernoulli(rate=0.05).bind(population(3))
    assert any(len(schedule.select(t)) == 0 for t in range(1, 20))


def test_rate_one_is_everyone(population):
    assert Bernoulli(rate=1).bind(population(5)).select(1).tolist() == [0, 1, 2, 3, 4]


def test_equal_rates_cost_only_the_cohort(population):
    schedule = Bernoulli(rate=5e-6).bind(population(10**7))
    tracemalloc.start()
    sizes = [len(schedule.select(t)) for t in range(1, 50)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
    assert abs(np.mean(sizes) - 50) < 4.417 * np.sqrt(50 / 49)  # Poisson(50), 49 rounds
