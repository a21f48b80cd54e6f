"""Many runs: Clopper and Pearson by hand; a canary in one step of an ideal Gaussian mechanism."""

import numpy as np
import pytest
from scipy.stats import binom

from fedsim.errors import ConfigError
from privacy.audit import multi_run
from privacy.audit.tradeoff import gdp_mu

CLAIM, DELTA = 4.0, 1e-5


def test_limits_of_a_rate() -> None:
    """0 of n: 1 − α^(1/n). Otherwise: the rate at which so few would have probability α."""
    limit = float(multi_run.upper_rate(0, 1000, alpha=0.025))
    assert limit == pytest.approx(1 - 0.025 ** (1 / 1000), rel=1e-12)
    limit = float(multi_run.upper_rate(7, 50, alpha=0.01))
    assert binom.cdf(7, 50, limit) == pytest.approx(0.01, rel=1e-9)
    limit = float(multi_run.lower_rate(7, 50, alpha=0.01))
    assert binom.sf(6, 50, limit) == pytest.approx(0.01, rel=1e-9)
    assert multi_run.upper_rate(50, 50, alpha=0.01) == 1.0
    assert multi_run.lower_rate(0, 50, alpha=0.01) == 0.0


def test_epsilon_of_two_error_rates() -> None:
    """FPR 0.1, FNR 0.2, δ 0.1: ln(0.7/0.1) from the one side, ln(0.8/0.2) from the other."""
    assert multi_run.epsilon_of(0.1, 0.2, delta=0.1) == pytest.approx(np.log(7), rel=1e-15)
    assert multi_run.epsilon_of(0.2, 0.1, delta=0.1) == pytest.approx(np.log(7), rel=1e-15)
    assert multi_run.epsilon_of(0.6, 0.5, delta=0.0) == 0.0


def test_the_ceiling_of_a_thousand_runs() -> None:
    """A perfect attack on 1000 runs a side shows ln(1000/3.7) at 95 %, and no more."""
    fpr = fnr = float(multi_run.upper_rate(0, 1000, alpha=0.025))
    assert multi_run.epsilon_of(fpr, fnr, delta=0.0) == pytest.approx(np.log(1000 / 3.7), abs=0.01)


def one_step(noise_factor: float, seed: int, runs: int = 5000) -> multi_run.ManyRuns:
    rng = np.random.default_rng([seed, round(100 * noise_factor)])
    mu = gdp_mu(CLAIM, DELTA) / noise_factor
    scores = mu + rng.standard_normal(runs), rng.standard_normal(runs)
    return multi_run.audit(*scores, delta=DELTA, confidence=0.99)


def test_a_one_step_canary() -> None:
    """5000 runs a side; an honest mechanism stays below its claim, noise / 1.5 does not."""
    honest = [one_step(1.0, seed) for seed in range(60)]
    broken = [one_step(1 / 1.5, seed) for seed in range(60)]
    assert sum(one.epsilon_gdp > CLAIM for one in honest) == 0
    assert sum(one.epsilon_gdp > CLAIM for one in broken) >= 57
    assert all(one.epsilon <= one.epsilon_gdp for one in honest)
    assert honest[0].runs == (2500, 2500)


def test_the_threshold_comes_from_runs_that_are_not_counted() -> None:
    """The first halves separate perfectly, the second not at all."""
    first_in, first_out = np.full(500, 5.0), np.full(500, -5.0)
    rest = np.random.default_rng(0).standard_normal(500)
    scores = np.concatenate([first_in, rest]), np.concatenate([first_out, rest])
    found = multi_run.audit(*scores, delta=DELTA)
    assert found.epsilon == found.mu == 0.0
    assert found.false_positives + found.false_negatives == 500


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4"):
        multi_run.audit(np.zeros(3), np.zeros(9), delta=DELTA)
    with pytest.raises(ConfigError, match="not finite"):
        multi_run.audit(np.full(8, np.inf), np.zeros(8), delta=DELTA)
