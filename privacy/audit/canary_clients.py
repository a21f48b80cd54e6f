"""Canary clients: an estimate of a federation's user-level ε. It is an estimate, not a bound.

Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar 2023 (arXiv:2302.03098).

    k canary clients send c_i, random unit vectors scaled to the clipping norm
    g_i = cos(c_i, θ_T − θ_0)           or the largest over rounds of cos(c_i, θ_t − θ_(t−1))
    never included: g ~ N(0, 1/d), nearly (d >= 1000)
    included:       g ~ N(μ̂, σ̂²), fitted to the k that were seen

    equal variances (shown):  μ = μ̂ √d,  ε̂ the ε at δ of a μ-GDP mechanism
    two variances (paper):    ε̂ = min{ε : max(H_ε(P₁‖P₀), H_ε(P₀‖P₁)) <= δ}

where H_ε(P‖Q) = ∫ max(0, p − e^ε q). σ̂ estimates what is 1/√d in theory; an error of it in either
direction raises ε̂, so the second is biased up. The canaries must not change what they are compared
with: T rounds of k canaries add k T / (z² d) of the noise's own energy to ‖θ_T − θ_0‖², with z the
noise multiplier, so that this must stay far below 1.

Shapes: K canaries, P parameters (the paper's d).

Differs from the paper: the equal-variance form.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.audit.tradeoff import bracket, check_delta, gdp_epsilon

log = logging.getLogger(__name__)

_FEWEST_PARAMETERS = 1000
_MOST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate of ε at `delta`, not a bound: no confidence comes with it.

    Attributes:
        epsilon: Of equal variances.
        epsilon_two_variances: Of two; biased up.
        mu: μ̂ √d.
        canaries: k.
        delta: As asked for.
        warnings: Why it may be off, in words; empty if nothing is known to be wrong.
    """

    epsilon: float
    epsilon_two_variances: float
    mu: float
    canaries: int
    delta: float
    warnings: tuple[str, ...]


def unit_vector(seed: int, canary: int, size: int) -> np.ndarray:
    """Return canary client `canary`'s random unit vector, float64 `[size]`.

    It is made again from its key whenever it is needed, so that none is ever stored.
    """
    vector_P = seeds.rng(seed, 0, canary, "audit-canary-client").standard_normal(size)
    return vector_P / np.linalg.norm(vector_P)


def cosines(seed: int, canaries: int, change_P: np.ndarray) -> np.ndarray:
    """Return the cosines `[K]` of canaries 0..K-1 with a change of the model."""
    change_P = np.asarray(change_P, float)
    norm = float(np.linalg.norm(change_P))
    if not (norm > 0 and np.isfinite(norm)):
        raise ConfigError(f"the model's change has norm {norm:g}: there is nothing to compare with")
    size = len(change_P)
    return np.array([unit_vector(seed, k, size) @ change_P / norm for k in range(canaries)])


def estimate(
    cosine_K: np.ndarray,
    size: int,
    *,
    delta: float,
    rounds: int,
    noise_multiplier: float,
) -> Estimate:
    """Estimate ε from the final model alone.

    Args:
        cosine_K: Of the canaries that took part, with θ_T − θ_0.
        size: d, the number of parameters.
        delta: Of the claim, in (0, 1).
        rounds: T, in how many rounds each canary took part.
        noise_multiplier: z that is claimed, for the check of k T << z² d.

    Raises:
        ConfigError: Fewer than two canaries, or values that are not finite.
    """
    mean, deviation = _moments(cosine_K)
    mu = max(0.0, mean * float(np.sqrt(size)))
    warnings = limits(len(cosine_K), rounds, noise_multiplier, size)
    for warning in warnings:
        log.warning("audit: %s", warning)
    return Estimate(
        epsilon=gdp_epsilon(delta, mu),
        epsilon_two_variances=gaussian_epsilon(
            delta, mean, deviation, 0.0, 1 / float(np.sqrt(size))
        ),
        mu=mu,
        canaries=len(cosine_K),
        delta=delta,
        warnings=warnings,
    )


def estimate_all_iterates(seen_K: np.ndarray, unseen_K: np.ndarray, *, delta: float) -> float:
    """Estimate ε against an adversary who sees every round's model; two variances.

    Args:
        seen_K: Largest cosine over rounds of each canary that took part.
        unseen_K: The same of canaries that never did: a largest value is not centred at zero.
        delta: Of the claim, in (0, 1).
    """
    return gaussian_epsilon(delta, *_moments(seen_K), *_moments(unseen_K))


def limits(canaries: int, rounds: int, noise_multiplier: float, size: int) -> tuple[str, ...]:
    """Return why an estimate under these circumstances may be off, in words."""
    found = []
    if size < _FEWEST_PARAMETERS:
        found.append(
            f"the model has {size} parameters; below {_FEWEST_PARAMETERS} the cosine of an unseen "
            "canary is not normal"
        )
    share = canaries * rounds / max(noise_multiplier**2 * size, 1e-300)
    if share > _MOST_SHARE:
        found.append(
            f"{canaries} canaries over {rounds} rounds add {share:.2g} of the noise's own energy "
            f"(k T / (z² d)), so the estimate is too low; use at most "
            f"{int(_MOST_SHARE * noise_multiplier**2 * size / rounds)} canaries"
        )
    return tuple(found)


def gaussian_epsilon(
    delta: float, mean_1: float, deviation_1: float, mean_0: float, deviation_0: float
) -> float:
    """Return the smallest ε >= 0 with hockey-stick divergence <= δ both ways, of two normals.

    Args:
        delta: In (0, 1).
        mean_1: Of the one.
        deviation_1: Of the one, > 0.
        mean_0: Of the other.
        deviation_0: Of the other, > 0.
    """
    check_delta(delta)
    if not (deviation_1 > 0 and deviation_0 > 0 and delta > 0):
        raise ConfigError(
            f"deviations {deviation_1:g} and {deviation_0:g}, delta {delta:g}: all must be above 0"
        )

    def close(epsilon: float) -> bool:
        one = hockey_stick(epsilon, mean_1, deviation_1, mean_0, deviation_0)
        two = hockey_stick(epsilon, mean_0, deviation_0, mean_1, deviation_1)
        return max(one, two) <= delta

    if close(0.0):
        return 0.0
    high = 1.0
    while not close(high):
        high *= 2
    return bracket(close, 0.0, high)[1]


def hockey_stick(
    epsilon: float, mean_p: float, deviation_p: float, mean_q: float, deviation_q: float
) -> float:
    """Return ∫ max(0, p − e^ε q) of normal densities p and q.

    p > e^ε q where a t² + b t + c > 0, with t in units of q: a half-line, the inside of two roots,
    the outside of them, everything or nothing.
    """
    s, m = deviation_p / deviation_q, (mean_p - mean_q) / deviation_q
    a, b = (1 - 1 / s**2) / 2, m / s**2
    c = -(m**2) / (2 * s**2) - float(np.log(s)) - epsilon
    if abs(a) < 1e-14:
        if b == 0:
            return 0.0 if c <= 0 else -float(np.expm1(epsilon))
        root = -c / b
        ends = [(root, np.inf)] if b > 0 else [(-np.inf, root)]
    elif (discriminant := b * b - 4 * a * c) <= 0:
        ends = [(-np.inf, np.inf)] if a > 0 else []
    else:
        # The root that does not cancel, and the other from their product.
        far = -(b + float(np.copysign(np.sqrt(discriminant), b))) / 2
        low, high = sorted((far / a, c / far))
        ends = [(-np.inf, low), (high, np.inf)] if a > 0 else [(low, high)]
    total = sum(
        _between((low - m) / s, (high - m) / s) - np.exp(epsilon) * _between(low, high)
        for low, high in ends
    )
    return max(0.0, float(total))


def _between(low: float, high: float) -> float:
    """Return Φ(high) − Φ(low), without cancelling in the upper tail."""
    if low > 0:
        low, high = -high, -low
    return float(ndtr(high) - ndtr(low))


def _moments(value_K: np.ndarray) -> tuple[float, float]:
    value_K = np.asarray(value_K, float)
    if len(value_K) < 2 or not np.isfinite(value_K).all():
        raise ConfigError(f"{len(value_K)} finite values are needed, of two canaries or more")
    return float(value_K.mean()), float(value_K.std(ddof=1))
