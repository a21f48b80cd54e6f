import numpy as np
import pytest

from fedsim.participation.churn import Churn, ChurnSchedule


def there(schedule, rounds):
    seen = np.zeros((rounds, len(schedule.join_N)), bool)
    for r in range(1, rounds + 1):
        seen[r - 1, schedule.select(r)] = True
    return seen


def test_stretches_by_hand():
    schedule = ChurnSchedule(np.array([1, 3, 2]), np.array([2, 10**9, 2]), 1.0, 4, seed=0)
    assert [schedule.select(r).tolist() for r in range(1, 6)] == [[0], [0, 2], [1], [1], [1]]
    assert schedule.rates().tolist() == [2 / 4, 2 / 4, 1 / 4]


def test_each_is_there_for_one_stretch_and_rates_are_its_share(population):
    schedule = Churn(horizon=40).bind(population(300))
    seen = there(schedule, 40)
    changes = np.abs(np.diff(np.pad(seen, ((1, 1), (0, 0))).astype(int), axis=0)).sum(0)
    assert (changes == 2).all()  # it comes once and goes once, at the latest with the end
    assert np.allclose(seen.mean(0), schedule.rates(), atol=1e-12)
    first, last = seen[0].mean(), schedule.last_N <= 40
    assert abs(first - 0.5) < 0.13 and abs(last.mean() - 0.3) < 0.12  # 4.4 deviations of 300 coins
    assert (schedule.join_N > 1).any() and (seen[-1] == ~(last & (schedule.last_N < 40))).all()


def test_coins_within_a_stretch(population):
    schedule = Churn(rate=0.4, present=1, leave=0, horizon=50).bind(population(100))
    assert abs(there(schedule, 50).mean() - 0.4) < 4.4 * np.sqrt(0.24 / 5000)
    assert schedule.rates() == pytest.approx(np.full(100, 0.4), abs=1e-15)
