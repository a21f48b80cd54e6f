import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ConfigError
from fedsim.participation.cyclic import Cyclic, CyclicSchedule


def masks(schedule, rounds):
    mask_TN = np.zeros((rounds, len(schedule.rates())), bool)
    for t in range(rounds):
        mask_TN[t, schedule.select(t + 1)] = True
    return mask_TN


@pytest.mark.parametrize(
    ("rate", "on", "off"),
    [(0.02, 2, 98), (0.1, 10, 90), (0.001, 1, 99), (0.5, 50, 50), (0.999, 100, 1), (1.0, 100, 1)],
)
def test_runs_are_exact(rate, on, off):
    schedule = CyclicSchedule(np.full(8, rate), 100, seed=0)
    mask_TN = masks(schedule, 450)
    assert schedule.rates()[0] == on / (on + off)
    for mask_T in mask_TN.T:
        first = int(np.argmax(mask_T))
        assert first < off
        expected_T = np.zeros(450, bool)
        for start in range(first, 450, on + off):
            expected_T[start : start + on] = True
        assert mask_T.tolist() == expected_T.tolist()


def test_long_run_rate_is_exact_over_whole_periods():
    rates = np.array([0.13, 0.5, 0.77])
    schedule = CyclicSchedule(rates, 100, seed=4)
    counts = masks(schedule, 500)[100:].sum(axis=0)  # four periods, from anywhere
    assert counts.tolist() == [4 * 13, 4 * 50, 4 * 77]
    assert schedule.rates().tolist() == rates.tolist()


def test_lag_one_correlation_is_that_of_the_runs():
    # Per period of c rounds one change each way: P(on, on) = (on - 1) / c.
    mask_T = masks(CyclicSchedule(np.array([0.25]), 20, seed=0), 421)[20:, 0]
    measured = np.corrcoef(mask_T[:-1], mask_T[1:])[0, 1]
    assert abs(measured - (4 / 20 - 0.25**2) / (0.25 * 0.75)) < 1e-12


def test_offsets_are_uniform():
    # 10 off rounds: first rounds 1..10, chi-square with 9 degrees of freedom.
    schedule = CyclicSchedule(np.full(5000, 0.5), 20, seed=0)
    first_N = np.argmax(masks(schedule, 20), axis=0)
    assert stats.chisquare(np.bincount(first_N, minlength=10)).pvalue > 1e-5
    assert first_N.max() == 9


def test_cycle_is_at_least_two():
    with pytest.raises(ConfigError, match=r"^cycle: 1 "):
        Cyclic(cycle=1)
