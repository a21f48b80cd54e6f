"""Shuffled reports: published values, the pair enumerated for few users, the closed form above."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from privacy.accounting.shuffle import (
    shuffled_delta,
    shuffled_epsilon,
    shuffled_epsilon_closed_form,
)

PUBLISHED = [
    (10**3, 1.0, 1e-5, 0.1540),
    (10**4, 1.0, 1e-6, 0.0530),
    (10**4, 2.0, 1e-6, 0.1550),
    (10**4, 4.0, 1e-6, 0.6009),
    (10**5, 4.0, 1e-6, 0.1698),
]


@pytest.mark.parametrize(("users", "local", "delta", "central"), PUBLISHED)
def test_published_values(users, local, delta, central):
    found = shuffled_epsilon(users, local, delta)
    assert found == pytest.approx(central, abs=1.01e-4)
    assert found <= shuffled_epsilon_closed_form(users, local, delta)


@pytest.mark.parametrize("users", [2, 7, 30])
@pytest.mark.parametrize("local", [0.5, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_pair_enumerated(users, local, share):
    p, q = np.zeros((users + 1, users + 1)), np.zeros((users + 1, users + 1))
    honest = math.exp(local) / (math.exp(local) + 1)
    for c in range(users):
        for a in range(c + 1):
            weight = binom.pmf(c, users - 1, math.exp(-local)) * binom.pmf(a, c, 0.5)
            for d, chance in ((1, honest), (0, 1 - honest)):
                p[a + d, c - a + 1 - d] += weight * chance
                q[a + 1 - d, c - a + d] += weight * chance
    epsilon = share * local
    forward = np.maximum(p - math.exp(epsilon) * q, 0).sum()
    backward = np.maximum(q - math.exp(epsilon) * p, 0).sum()
    assert p.sum() == pytest.approx(1) and forward == pytest.approx(backward)
    assert shuffled_delta(users, local, epsilon, 1e-12) == pytest.approx(forward, abs=2e-12)


def test_the_ends():
    assert shuffled_epsilon(1, 1.0, 1e-6) == pytest.approx(1.0, abs=1e-4)
    assert shuffled_epsilon(1, 1.0, 1e-6) <= 1.0
    assert shuffled_epsilon(100, 1.0, 0.9) == 0
    assert shuffled_epsilon_closed_form(10, 3.0, 1e-6) == 3.0
    # The formula: e0 = 1, n = 10^4, delta = 1e-6.
    spread = 8 * math.sqrt(math.e * math.log(4e6) / 1e4) + 8 * math.e / 1e4
    by_hand = math.log(1 + (math.e - 1) / (math.e + 1) * spread)
    assert shuffled_epsilon_closed_form(10**4, 1.0, 1e-6) == pytest.approx(by_hand, rel=1e-12)


def test_more_users_hide_better_and_delta_buys_epsilon():
    by_users = [shuffled_epsilon(users, 1.0, 1e-5) for users in (10, 100, 1000, 10_000)]
    assert by_users == sorted(by_users, reverse=True)
    by_delta = [shuffled_epsilon(1000, 1.0, delta) for delta in (1e-9, 1e-6, 1e-3)]
    assert by_delta == sorted(by_delta, reverse=True)
