"""Lower bounds on ε from a single run with m canaries.

Each canary is in the training data or not by a fair coin of its own. After the run every canary has
a score, higher if it looks included; the r with the most extreme scores are guessed, the upper half
"in" and the lower half "out", and v of the guesses are right.

Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), of an (ε, δ)-DP mechanism:

    P[>= v right] <= P[B >= v] + 2 m δ max_{1<=i<=v} P[v−i <= B < v] / i,   B ~ Bin(r, e^ε/(1+e^ε))

Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235), of a claimed trade-off curve, as f̄(x), the
lowest false positive rate of a test whose true positive rate is x, at significance p:

    R ← p v/m,  H ← p (r−v)/m
    for i = v−1, ..., 0:  H' ← max(H, f̄(R)),  R ← R + i/(r−i) (H' − H),  H ← H'
    reject the curve if R + H > r/m

The second is much stronger where noise is Gaussian, since the first allows any (ε, δ) mechanism.
There are two uses of it: `refutes` tests the whole curve that an accountant claims; `mu_bound`
finds the largest μ whose curve f̄(x) = Φ(Φ⁻¹(x) − μ) is rejected, which is shown as the ε at δ of
that curve. The latter is a lower bound on ε only of a mechanism with a Gaussian's curve.

Shapes: M canaries.

Differs from the papers: nothing. r must be fixed before the scores are seen; over several r, the
significance is shared among them (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fedsim.errors import ConfigError
from privacy.audit.tradeoff import bracket, check_delta, gdp_epsilon

Curve = Callable[[float], float]
"""True positive rate -> the lowest false positive rate at which a test can have it."""

_MOST_EPSILON = 100.0
_MOST_MU = 100.0
_PRECISION = 1e-9


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """What one run's canaries show; each of the two bounds holds with `confidence`.

    Attributes:
        canaries, guesses, correct: m, r and v; of several r, those of the largest μ.
        epsilon_steinke: Lower bound on ε at `delta`, of any mechanism; the largest over r.
        mu: Lower bound on μ of a mechanism with the trade-off curve of a Gaussian one.
        epsilon_gdp: The ε at `delta` of that μ.
        delta, confidence: As asked for.
    """

    canaries: int
    guesses: int
    correct: int
    epsilon_steinke: float
    mu: float
    epsilon_gdp: float
    delta: float
    confidence: float


def audit(
    score_M: np.ndarray,
    included_M: np.ndarray,
    *,
    guesses: Sequence[int],
    delta: float,
    confidence: float = 0.95,
) -> OneRun:
    """Return the bounds that the scores of one run's canaries support.

    Args:
        score_M: Higher for canaries that look included; finite.
        included_M: Whether each was included, by a fair coin that nobody had looked at.
        guesses: r, or several of them, chosen before the scores were looked at.
        delta: Of the claim, in [0, 1).
        confidence: That a bound holds, in (0, 1).

    Raises:
        ConfigError: An argument is outside its range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: {confidence!r} is not allowed; expected (0, 1), e.g. 0.95")
    if not guesses:
        raise ConfigError("guesses: none given; fix a number of guesses, e.g. m/10")
    m, p = len(score_M), (1 - confidence) / len(guesses)
    counts = [(r, count_correct(score_M, included_M, r)) for r in guesses]
    mu, r, v = max((mu_bound(m, r, v, p=p), r, v) for r, v in counts)
    return OneRun(
        canaries=m,
        guesses=r,
        correct=v,
        epsilon_steinke=max(epsilon_bound(m, r, v, delta=delta, p=p) for r, v in counts),
        mu=mu,
        epsilon_gdp=gdp_epsilon(delta, mu),
        delta=delta,
        confidence=confidence,
    )


def count_correct(score_M: np.ndarray, included_M: np.ndarray, guesses: int) -> int:
    """Return v: how many are right if the top r/2 scores are guessed in, the bottom r/2 out.

    Equal scores are ordered by index, which knows nothing of the coins. An odd r guesses one more
    "in" than "out".

    Raises:
        ConfigError: A score is not finite, there is not one for each canary, or r is not in [1, m].
    """
    score_M, included_M = np.asarray(score_M), np.asarray(included_M, bool)
    m = len(score_M)
    if score_M.shape != included_M.shape or score_M.ndim != 1:
        raise ConfigError(
            f"scores are {list(score_M.shape)}, the inclusion mask is {list(included_M.shape)}; "
            "give one of each for every canary"
        )
    if not np.isfinite(score_M).all():
        raise ConfigError("a canary's score is not finite; did the model diverge?")
    if not 1 <= guesses <= m:
        raise ConfigError(f"guesses: {guesses} of {m} canaries; expected 1 to {m}, e.g. {m // 10}")
    order_M = np.argsort(score_M, kind="stable")
    out, into = order_M[: guesses // 2], order_M[m - (guesses - guesses // 2) :]
    return int(included_M[into].sum() + (~included_M[out]).sum())


def p_value(epsilon: float, m: int, r: int, v: int, *, delta: float) -> float:
    """Return a bound on the chance of v or more right guesses under (ε, δ)-DP (Steinke et al.).

    Args:
        epsilon: >= 0.
        m: Canaries.
        r: Guesses, 1 to m.
        v: Right guesses, 0 to r.
        delta: In [0, 1).
    """
    _check_counts(m, r, v)
    check_delta(delta)
    rights = binom(r, 1 / (1 + np.exp(-epsilon)))
    above = float(rights.sf(v - 1))
    if not delta or not v:
        return min(1.0, above)
    i = np.arange(1, v + 1)
    # P[v−i <= B < v], summed from the largest count down so that nothing cancels.
    within = np.cumsum(rights.pmf(v - i))
    return min(1.0, above + 2 * m * delta * float((within / i).max()))


def epsilon_bound(m: int, r: int, v: int, *, delta: float, p: float = 0.05) -> float:
    """Return Steinke et al.'s lower bound on ε, at significance p; 0 if there is none.

    Example:
        >>> round(epsilon_bound(1000, 100, 95, delta=1e-5), 5)
        2.16518
    """
    if p_value(0.0, m, r, v, delta=delta) >= p:
        return 0.0
    if p_value(_MOST_EPSILON, m, r, v, delta=delta) < p:
        return _MOST_EPSILON

    def stands(epsilon: float) -> bool:
        return p_value(epsilon, m, r, v, delta=delta) >= p

    return bracket(stands, 0.0, _MOST_EPSILON, precision=_PRECISION)[0]


def refutes(curve: Curve, m: int, r: int, v: int, *, p: float = 0.05) -> bool:
    """Return whether v of r right guesses reject a trade-off curve (Mahloujifar et al.).

    Args:
        curve: f̄: TPR -> the lowest FPR at which a test can have it.
        m: Canaries.
        r: Guesses, 1 to m.
        v: Right guesses, 0 to r.
        p: Significance.
    """
    _check_counts(m, r, v)
    right, wrong = p * v / m, p * (r - v) / m
    for i in range(v - 1, -1, -1):
        more = max(wrong, curve(right))
        right += i / (r - i) * (more - wrong)
        wrong = more
        if right + wrong > r / m:  # both only grow
            return True
    return False


def mu_bound(m: int, r: int, v: int, *, p: float = 0.05) -> float:
    """Return Mahloujifar et al.'s lower bound on μ, at significance p; 0 if there is none.

    Example:
        >>> round(mu_bound(1000, 100, 95), 4)
        0.7868
    """

    def stands(mu: float) -> bool:
        return not refutes(lambda tpr: float(ndtr(ndtri(tpr) - mu)), m, r, v, p=p)

    if stands(0.0):
        return 0.0
    if not stands(_MOST_MU):
        return _MOST_MU
    return bracket(stands, 0.0, _MOST_MU, precision=_PRECISION)[0]


def _check_counts(m: int, r: int, v: int) -> None:
    if not 0 <= v <= r <= m or not r:
        raise ConfigError(f"{v} right of {r} guesses on {m} canaries: expected 0 <= v <= r <= m")
