from itertools import pairwise

import numpy as np
import pytest

from fedsim.participation.markov import Markov, MarkovSchedule


def masks(rate, max_on, clients, rounds, seed=0):
    schedule = MarkovSchedule(np.full(clients, rate), max_on, seed)
    mask_TN = np.zeros((rounds, clients), bool)
    for t in range(rounds):
        mask_TN[t, schedule.select(t + 1)] = True
    return mask_TN


def completed_runs(mask_TN, value, last_start):
    """Lengths of the runs of `value` that start after round 1 and by `last_start`."""
    lengths = []
    for mask_T in mask_TN.T:
        change = np.flatnonzero(np.diff(mask_T.astype(int))) + 1
        for start, end in pairwise(change):
            if mask_T[start] == value and start <= last_start:
                lengths.append(end - start)
    return np.array(lengths)


@pytest.mark.parametrize(("rate", "a", "b"), [(0.5, 0.05, 0.05), (0.1, 0.05, 0.45)])
def test_transition_probabilities_by_hand(rate, a, b):
    schedule = MarkovSchedule(np.array([rate]), 0.05, seed=0)
    assert np.allclose([schedule.turn_on_N[0], schedule.turn_off_N[0]], [a, b], atol=1e-15)


def test_a_rate_too_low_for_the_speed_slows_the_chain_down():
    # p = .02: b = .05 * 49 = 2.45 > 1, so a = .05 / 2.45 = 1/49 and b = 1; a / (a + b) = .02.
    schedule = MarkovSchedule(np.array([0.02]), 0.05, seed=0)
    assert np.allclose([schedule.turn_on_N[0], schedule.turn_off_N[0]], [1 / 49, 1], atol=1e-15)
    runs = completed_runs(masks(0.02, 0.05, clients=100, rounds=200), True, 198)
    assert len(runs) > 100 and (runs == 1).all()


@pytest.mark.parametrize(("rate", "max_on"), [(0.5, 0.05), (0.1, 0.05), (0.5, 0.8)])
def test_long_run_rate_lag_one_correlation_and_run_lengths(rate, max_on):
    clients, rounds = 60, 1500
    mask_TN = masks(rate, max_on, clients, rounds)
    schedule = MarkovSchedule(np.array([rate]), max_on, seed=0)
    a, b = schedule.turn_on_N[0], schedule.turn_off_N[0]
    correlation = 1 - a - b

    # Long-run rate: a stationary chain's mean over T rounds has variance at most
    # p (1 - p) / T * (1 + rho) / (1 - rho) (for rho >= 0; p (1 - p) / T otherwise); clients are
    # independent. All bounds: 4.417 standard errors, one false alarm in 1e5.
    inflate = max(1.0, (1 + correlation) / (1 - correlation))
    error = np.sqrt(rate * (1 - rate) * inflate / (clients * rounds))
    assert abs(mask_TN.mean() - rate) < 4.417 * error

    # Lag one: rho^ = 1 - a^ - b^ up to O(1/T), where a^ is a frequency among the rounds spent off
    # and b^ among those spent on, conditionally independent coins both.
    now, then = mask_TN[:-1].ravel(), mask_TN[1:].ravel()
    measured = np.corrcoef(now, then)[0, 1]
    error = np.sqrt(a * (1 - a) / (~now).sum() + b * (1 - b) / now.sum())
    assert abs(measured - correlation) < 4.417 * error + 1 / rounds

    # Runs on and off are geometric: mean 1/b and 1/a, variance (1 - b)/b^2. Counted are the runs
    # that start 300 rounds before the end; a longer one, uncounted, has chance .95^300 = 2e-7.
    for value, leave in ((True, b), (False, a)):
        runs = completed_runs(mask_TN, value, rounds - 300)
        error = np.sqrt((1 - leave) / len(runs)) / leave
        assert abs(runs.mean() - 1 / leave) <= 4.417 * error
        ones = (runs == 1).mean()  # the chance of leaving at once is `leave` itself
        assert abs(ones - leave) <= 4.417 * np.sqrt(leave * (1 - leave) / len(runs))


def test_the_start_is_stationary():
    # The very first round has the rate: 20,000 independent clients, binomial.
    first = masks(0.1, 0.05, clients=20_000, rounds=3).mean(axis=1)
    assert (np.abs(first - 0.1) < 4.417 * np.sqrt(0.09 / 20_000)).all()


def test_clients_are_independent():
    # Correlation of two chains over T rounds: variance (1 + rho^2) / (1 - rho^2) / T.
    mask_TN = masks(0.5, 0.25, clients=2, rounds=6000)  # rho = 1/2
    measured = np.corrcoef(mask_TN[:, 0], mask_TN[:, 1])[0, 1]
    assert abs(measured) < 4.417 * np.sqrt((1 + 0.25) / (1 - 0.25) / 6000)


def test_rate_one_never_leaves(population):
    schedule = Markov(rate=1).bind(population(3))
    assert all(schedule.select(t).tolist() == [0, 1, 2] for t in range(1, 50))


def test_going_back_replays_the_same_rounds(population):
    schedule = Markov(rate=0.5, max_on=0.5).bind(population(50))
    forward = [schedule.select(t).tolist() for t in range(1, 40)]
    backward = [schedule.select(t).tolist() for t in range(39, 0, -1)]
    assert backward[::-1] == forward
    assert len({tuple(cohort) for cohort in forward}) == 39
