"""One-run bounds: the papers' numbers, their power and their false alarms on an ideal mechanism."""

import numpy as np
import pytest

from fedsim.errors import ConfigError
from privacy.audit import one_run
from privacy.audit.tradeoff import gdp_delta, gdp_mu, gdp_tpr, profile_fpr

STEINKE = {
    (100, 100, 75, 0.0): 0.70221,
    (1000, 1000, 600, 1e-5): 0.29723,
    (1000, 1000, 750, 1e-5): 0.97637,
    (1000, 100, 95, 1e-5): 2.16518,
    (1000, 50, 50, 1e-5): 2.75622,
    (10_000, 1000, 900, 1e-5): 2.01519,
}
MU = {
    (1000, 100, 95): 0.7868,
    (1000, 1000, 600): 0.1638,
    (10_000, 1000, 900): 0.6772,
    (1000, 500, 400): 0.5188,
}
CLAIM, DELTA = 4.0, 1e-5


@pytest.mark.parametrize(("case", "epsilon"), STEINKE.items())
def test_steinke_to_its_digits(case: tuple[int, int, int, float], epsilon: float) -> None:
    m, r, v, delta = case
    assert round(one_run.epsilon_bound(m, r, v, delta=delta), 5) == epsilon


@pytest.mark.parametrize(("case", "mu"), MU.items())
def test_f_dp_to_its_digits(case: tuple[int, int, int], mu: float) -> None:
    assert round(one_run.mu_bound(*case), 4) == mu


def test_without_delta_it_is_the_binomial_tail() -> None:
    """P[Bin(3, 1/2) >= 3] = 1/8; at ε = ln 3 each guess is right with 3/4."""
    assert one_run.p_value(0.0, 3, 3, 3, delta=0.0) == pytest.approx(1 / 8, abs=1e-15)
    assert one_run.p_value(np.log(3), 3, 3, 2, delta=0.0) == pytest.approx(27 / 32, abs=1e-15)


def test_the_price_of_delta_by_hand() -> None:
    """r = 2, v = 2, fair guesses: max_i P[2−i <= B < 2]/i = max(1/2, 3/4 / 2) = 1/2."""
    m, delta = 10, 1e-3
    expected = 1 / 4 + 2 * m * delta * 1 / 2
    assert one_run.p_value(0.0, m, 2, 2, delta=delta) == pytest.approx(expected, abs=1e-15)


def test_more_right_guesses_never_show_less() -> None:
    bounds = [one_run.mu_bound(400, 40, v) for v in range(41)]
    assert bounds == sorted(bounds) and bounds[20] == 0 < bounds[-1]
    bounds = [one_run.epsilon_bound(400, 40, v, delta=1e-5) for v in range(41)]
    assert bounds == sorted(bounds) and bounds[20] == 0 < bounds[-1]


def test_guesses_by_hand() -> None:
    score = np.array([5.0, -3.0, 0.1, 4.0, -2.0, 0.0])
    included = np.array([True, False, True, False, True, False])
    assert one_run.count_correct(score, included, 2) == 2
    assert one_run.count_correct(score, included, 4) == 2  # 5 and −3 are right, 4 and −2 wrong
    assert one_run.count_correct(score, included, 6) == 4
    assert one_run.count_correct(score, included, 1) == 1  # an odd one out guesses "in"


def test_equal_scores_tell_nothing() -> None:
    included = np.arange(1000) % 2 == 0
    assert one_run.count_correct(np.zeros(1000), included, 200) == 100


@pytest.mark.parametrize(
    ("score", "guesses", "word"),
    [
        (np.array([np.nan, 1.0]), 2, "not finite"),
        (np.zeros(3), 2, "inclusion mask"),
        (np.zeros(2), 3, "guesses: 3"),
        (np.zeros(2), 0, "guesses: 0"),
    ],
)
def test_what_cannot_be_audited_is_refused(score: np.ndarray, guesses: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        one_run.count_correct(score, np.array([True, False]), guesses)


def test_several_counts_of_guesses_share_the_significance() -> None:
    score, included = ideal(1000, 1.0, 0)
    one = one_run.audit(score, included, guesses=[200], delta=DELTA, confidence=0.95)
    two = one_run.audit(score, included, guesses=[200, 200], delta=DELTA, confidence=0.95)
    half = one_run.audit(score, included, guesses=[200], delta=DELTA, confidence=0.975)
    assert two.mu == half.mu < one.mu
    assert two.epsilon_steinke == half.epsilon_steinke < one.epsilon_steinke


def ideal(m: int, mu: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of m canaries of unit norm in orthogonal directions, each in N(0, 1/μ²) noise."""
    rng = np.random.default_rng([seed, round(1000 * mu)])
    included = rng.random(m) < 0.5
    return included * mu + rng.standard_normal(m), included


@pytest.mark.parametrize(("confidence", "guesses"), [(0.95, 200), (0.99, 400)])
def test_halved_noise_is_flagged_and_true_noise_is_not(confidence: float, guesses: int) -> None:
    """2000 canaries, ε = 4 claimed; at 99 % an honest run is flagged at most once in a hundred."""
    flagged = {1: 0, 2: 0}
    for factor in flagged:
        for seed in range(20):
            score, included = ideal(2000, factor * gdp_mu(CLAIM, DELTA), seed)
            found = one_run.audit(
                score, included, guesses=[guesses], delta=DELTA, confidence=confidence
            )
            assert found.epsilon_steinke < found.epsilon_gdp
            flagged[factor] += found.epsilon_gdp > CLAIM
    assert flagged == {1: 0, 2: 20}


def test_false_alarms_at_the_weakest_confidence() -> None:
    """The bound holds where it is nearly attained, too: few canaries, all guessed, no privacy loss.

    At 60 % confidence, at most 40 % of runs may say that a mechanism with μ = 0.5 has more; with
    400 runs, 48 % would be more than three standard errors above that.
    """
    alarms = 0
    for seed in range(400):
        score, included = ideal(20, 0.5, seed)
        v = one_run.count_correct(score, included, 20)
        alarms += one_run.mu_bound(20, 20, v, p=0.4) > 0.5
    assert 0 < alarms / 400 < 0.48


def test_a_claimed_curve_is_refuted_where_its_mu_is() -> None:
    """The profile of a μ-GDP mechanism is the same hypothesis as its μ."""
    epsilon = np.linspace(-2, 8, 2001)
    for mu, refuted in [(0.78, True), (0.79, False)]:
        delta = np.array([gdp_delta(float(e), mu) for e in epsilon])

        def curve(tpr: float, delta: np.ndarray = delta) -> float:
            return profile_fpr(tpr, epsilon, delta)

        assert one_run.refutes(curve, 1000, 100, 95) is refuted
    x = np.array([0.01, 0.3, 0.9])
    again = [profile_fpr(float(t), epsilon, delta) for t in gdp_tpr(x, mu)]
    np.testing.assert_allclose(again, x, atol=1e-4)
