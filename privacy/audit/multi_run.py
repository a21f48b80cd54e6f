"""Lower bounds on ε from many runs, with the canary in half of them.

A run's score is higher if the canary looks included; a threshold turns it into a guess. With upper
confidence limits FPR⁺ and FNR⁺ of its error rates (Clopper and Pearson 1934, α/2 each, so that both
hold with confidence 1 − α):

    (ε, δ)-DP (Kairouz et al. 2015, arXiv:1311.0776; Nasr et al. 2021, arXiv:2101.04535):
        ε >= max(ln((1 − δ − FNR⁺)/FPR⁺), ln((1 − δ − FPR⁺)/FNR⁺))
    μ-GDP (Nasr et al. 2023, arXiv:2302.07956):
        μ >= Φ⁻¹(1 − FPR⁺) − Φ⁻¹(FNR⁺)

The threshold must not depend on the scores that it is judged by: the first half of each side's runs
choose it, the second half are counted. With n runs a side, the first bound shows at most about
ln(n/3.7) at 95 %.

Shapes: I runs with the canary, O runs without.

Differs from the papers: the canary, threshold and confidence are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtri

from fedsim.errors import ConfigError
from privacy.audit.tradeoff import check_delta, gdp_epsilon


@dataclass(frozen=True, kw_only=True)
class ManyRuns:
    """What many runs show; all of it holds with `confidence`.

    Attributes:
        runs: Counted: with the canary, and without; those that chose the threshold are not.
        threshold: A run is guessed "in" if its score is above.
        false_positives, false_negatives: Wrong guesses among the runs counted.
        epsilon: Lower bound on ε at `delta`, of any mechanism.
        mu: Lower bound on μ of a mechanism with the trade-off curve of a Gaussian one.
        epsilon_gdp: The ε at `delta` of that μ.
        delta, confidence: As asked for.
    """

    runs: tuple[int, int]
    threshold: float
    false_positives: int
    false_negatives: int
    epsilon: float
    mu: float
    epsilon_gdp: float
    delta: float
    confidence: float


def audit(
    in_I: np.ndarray, out_O: np.ndarray, *, delta: float, confidence: float = 0.99
) -> ManyRuns:
    """Return the bounds that the scores of runs with and without the canary support.

    Args:
        in_I: Scores of independent runs with the canary, in an order that says nothing of them.
        out_O: The same of runs without it.
        delta: Of the claim, in [0, 1).
        confidence: That all bounds hold, in (0, 1).

    Raises:
        ConfigError: Too few runs, scores that are not finite, or an argument outside its range.
    """
    check_delta(delta)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: {confidence!r} is not allowed; expected (0, 1), e.g. 0.99")
    in_I, out_O = np.asarray(in_I, float), np.asarray(out_O, float)
    if min(len(in_I), len(out_O)) < 4:
        raise ConfigError(
            f"{len(in_I)} runs with the canary and {len(out_O)} without: half of each choose the "
            "threshold; give at least 4 of each, and thousands to show much"
        )
    if not (np.isfinite(in_I).all() and np.isfinite(out_O).all()):
        raise ConfigError("a run's score is not finite; did the model diverge?")
    first_in, first_out = len(in_I) // 2, len(out_O) // 2
    alpha = 1 - confidence
    threshold = best_threshold(in_I[:first_in], out_O[:first_out], alpha=alpha)
    in_I, out_O = in_I[first_in:], out_O[first_out:]
    misses, alarms = int((in_I <= threshold).sum()), int((out_O > threshold).sum())
    fnr = float(upper_rate(misses, len(in_I), alpha=alpha / 2))
    fpr = float(upper_rate(alarms, len(out_O), alpha=alpha / 2))
    mu = max(0.0, float(mu_of(fpr, fnr)))
    return ManyRuns(
        runs=(len(in_I), len(out_O)),
        threshold=threshold,
        false_positives=alarms,
        false_negatives=misses,
        epsilon=epsilon_of(fpr, fnr, delta=delta),
        mu=mu,
        epsilon_gdp=gdp_epsilon(delta, mu),
        delta=delta,
        confidence=confidence,
    )


def best_threshold(in_I: np.ndarray, out_O: np.ndarray, *, alpha: float) -> float:
    """Return the threshold at which these scores would give the largest bound on μ."""
    threshold_T = np.unique(np.concatenate([in_I, out_O]))
    misses_T = np.searchsorted(np.sort(in_I), threshold_T, side="right")
    alarms_T = len(out_O) - np.searchsorted(np.sort(out_O), threshold_T, side="right")
    mu_T = mu_of(
        upper_rate(alarms_T, len(out_O), alpha=alpha / 2),
        upper_rate(misses_T, len(in_I), alpha=alpha / 2),
    )
    return float(threshold_T[int(np.argmax(mu_T))])


def upper_rate(count: int | np.ndarray, of: int, *, alpha: float) -> np.ndarray:
    """Return the upper Clopper-Pearson limit of a rate: too low with probability <= alpha.

    Example:
        >>> round(float(upper_rate(0, 1000, alpha=0.025)), 6)
        0.003682
    """
    count_T = np.asarray(count, float)
    # The last of them is 1; the function is not defined there.
    limit_T = betaincinv(np.minimum(count_T + 1, of), np.maximum(of - count_T, 1), 1 - alpha)
    return np.where(count_T >= of, 1.0, limit_T)


def lower_rate(count: int | np.ndarray, of: int, *, alpha: float) -> np.ndarray:
    """Return the lower Clopper-Pearson limit of a rate: too high with probability <= alpha."""
    return 1 - upper_rate(of - np.asarray(count), of, alpha=alpha)


def epsilon_of(fpr: float, fnr: float, *, delta: float) -> float:
    """Return the smallest ε >= 0 that allows these error rates, both above zero."""
    gains = ((1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr)
    return max(0.0, *(float(np.log(gain)) for gain in gains if gain > 0))


def mu_of(fpr: float | np.ndarray, fnr: float | np.ndarray) -> np.ndarray:
    """Return the μ of the Gaussian curve through these error rates; may be negative."""
    mu: np.ndarray = ndtri(1 - np.asarray(fpr)) - ndtri(np.asarray(fnr))
    return mu
