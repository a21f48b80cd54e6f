"""Canary clients: the estimator on a federation of pure noise, where the answer is known."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from fedsim.errors import ConfigError
from privacy.audit import canary_clients as canary
from privacy.audit.tradeoff import gdp_epsilon

DELTA = 1e-5


def test_unit_vectors_are_keyed() -> None:
    one = canary.unit_vector(3, 7, 500)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(one, canary.unit_vector(3, 7, 500))
    assert abs(one @ canary.unit_vector(3, 8, 500)) < 0.2


def test_cosines_by_hand() -> None:
    vector = canary.unit_vector(0, 1, 4)
    cosine = canary.cosines(0, 2, 3 * vector)
    assert cosine[1] == pytest.approx(1, abs=1e-12)
    assert cosine[0] == pytest.approx(canary.unit_vector(0, 0, 4) @ vector, abs=1e-12)
    with pytest.raises(ConfigError, match="norm 0"):
        canary.cosines(0, 2, np.zeros(4))


@pytest.mark.parametrize(
    ("mean", "deviation"), [(1.0, 1.0), (1.0, 1.3), (0.5, 0.7), (0.0, 1.5), (3.0, 1.0)]
)
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_hockey_sticks_by_integration(mean: float, deviation: float, epsilon: float) -> None:
    def gap(x: float) -> float:
        p, q = norm.pdf(x, mean, deviation), norm.pdf(x, 0.2, 0.9)
        return max(0.0, float(p - np.exp(epsilon) * q))

    expected = quad(gap, -15, 15, limit=500, points=(-2, 0, 2, 4))[0]
    found = canary.hockey_stick(epsilon, mean, deviation, 0.2, 0.9)
    assert found == pytest.approx(expected, abs=1e-7)


def test_equal_variances_are_a_gaussian_mechanism() -> None:
    assert canary.hockey_stick(0.3, 1.0, 2.0, 1.0, 2.0) == 0.0
    found = canary.gaussian_epsilon(DELTA, 1.0, 0.5, 0.5, 0.5)
    assert found == pytest.approx(gdp_epsilon(DELTA, 1.0), abs=1e-9)


def federation(canaries: int, size: int, noise: float, rounds: int, seed: int) -> np.ndarray:
    """Cosines of canaries that took part in every round of a run of noise alone, clip norm 1."""
    change = np.sqrt(rounds) * noise * np.random.default_rng(seed).standard_normal(size)
    for k in range(canaries):
        change += rounds * canary.unit_vector(seed, k, size)
    return canary.cosines(seed, canaries, change)


def test_the_estimate_is_near_theory_and_two_variances_are_above_it() -> None:
    """z = 1, one round: μ = 1, ε = 4.377. Standard error of μ̂√d: 1/√100 a run, 1/√2000 of all."""
    runs = [
        canary.estimate(
            federation(100, 5_000, 1.0, 1, seed),
            5_000,
            delta=DELTA,
            rounds=1,
            noise_multiplier=1.0,
        )
        for seed in range(20)
    ]
    mean = np.mean([run.mu for run in runs])
    assert mean == pytest.approx(1.0, abs=4 / np.sqrt(2000))
    one, two = (
        np.mean([r.epsilon for r in runs]),
        np.mean([r.epsilon_two_variances for r in runs]),
    )
    assert one == pytest.approx(4.377, abs=0.5)
    assert two > one + 0.2
    assert all(not run.warnings for run in runs)


def test_more_canaries_than_the_noise_bears_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """k T = 400·4, z² d = 2000: the estimate falls to μ/√(1 + k T/(z² d)) = 2/√1.8."""
    cosine = federation(400, 2000, 1.0, 4, 0)
    found = canary.estimate(cosine, 2000, delta=DELTA, rounds=4, noise_multiplier=1.0)
    assert found.mu == pytest.approx(2 / np.sqrt(1.8), abs=0.2)
    assert len(found.warnings) == 1 and "at most 50 canaries" in found.warnings[0]
    assert "at most 50 canaries" in caplog.text
    assert "is not normal" in canary.limits(1, 1, 1.0, 999)[0]


def test_all_iterates_compares_with_canaries_that_took_no_part() -> None:
    """Largest values of ten are not centred at zero; unseen canaries must be no evidence."""
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((2000, 10)).max(axis=1)
    unseen = rng.standard_normal((2000, 10)).max(axis=1)
    nothing = canary.estimate_all_iterates(seen, unseen, delta=1e-2)
    something = canary.estimate_all_iterates(seen + 1, unseen, delta=1e-2)
    assert nothing < 0.3 < 1.5 < something
