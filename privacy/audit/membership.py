"""Membership inference: how well an attacker tells training samples from others.

Loss threshold, Yeom et al. 2018 (arXiv:1709.01604): the lower a sample's loss, the more
it looks like a member.

LiRA (online), Carlini et al. 2022 (arXiv:2112.03570). S shadow models, each trained on
a random half; per sample, normals are fitted to the logit-scaled confidence of the true class

    φ = ln(p_y / (1 − p_y))
    Λ = ln N(φ; μ_in, σ_in²) − ln N(φ; μ_out, σ_out²)

of the shadow models that had the sample and of those that had not.

What counts is the true positive rate where false positives are rare: 0.1 % and 1 %. `TruePositives`
gives it with a confidence interval, beside which `privacy.audit.tradeoff` puts the upper curve.

Shapes: N samples, S shadow models, C classes.

Differs from the papers: variances are each sample's own from `per_sample_from` shadow models a
side, and one for all samples below it, which the paper advises for few models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import ConfigError
from privacy.audit.multi_run import lower_rate, upper_rate

_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class TruePositives:
    """The true positive rate at one false positive rate.

    Attributes:
        fpr: At most this share of non-members is taken for members.
        tpr: Share of members found.
        low, high: Clopper-Pearson limits of `tpr`, of samples taken as independent: those that one
            model was trained on are not quite, so it says how finely `tpr` was measured. The
            threshold is taken from the same scores.
        confidence: Of the interval.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    confidence: float


def scaled_confidence(logits_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Return φ `[N]`: the log odds of each sample's true class, however sure the model is."""
    logits_NC = np.asarray(logits_NC, np.float64)
    row_N = np.arange(len(label_N))
    true_N = logits_NC[row_N, label_N]
    others_NC = logits_NC.copy()
    others_NC[row_N, label_N] = -np.inf
    top_N = others_NC.max(axis=1)
    rest_N: np.ndarray = top_N + np.log(np.exp(others_NC - top_N[:, None]).sum(axis=1))
    phi_N: np.ndarray = true_N - rest_N
    return phi_N


def lira(
    phi_N: np.ndarray, shadow_SN: np.ndarray, member_SN: np.ndarray, *, per_sample_from: int = 32
) -> np.ndarray:
    """Return Λ `[N]`: higher for samples that look like members of the attacked model.

    Args:
        phi_N: Scaled confidences under the attacked model.
        shadow_SN: The same under each shadow model.
        member_SN: Whether the shadow model had the sample in training.
        per_sample_from: Shadow models a side from which variances are each sample's own.

    Raises:
        ConfigError: A sample has fewer than two shadow models with it, or without.
    """
    member_SN = np.asarray(member_SN, bool)
    fewest = int(min(member_SN.sum(axis=0).min(), (~member_SN).sum(axis=0).min()))
    if fewest < 2:
        raise ConfigError(
            f"a sample is in (or out of) {fewest} of {len(member_SN)} shadow models; LiRA fits a "
            "normal to each side: train more, each on a random half"
        )
    own = fewest >= per_sample_from
    inside_N = _log_density(phi_N, *_fit(shadow_SN, member_SN, own))
    outside_N = _log_density(phi_N, *_fit(shadow_SN, ~member_SN, own))
    score_N: np.ndarray = inside_N - outside_N
    return score_N


def roc(score_N: np.ndarray, member_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every threshold, rising from (0, 0) to (1, 1)."""
    score_N, member_N = np.asarray(score_N, float), np.asarray(member_N, bool)
    if not member_N.any() or member_N.all() or not np.isfinite(score_N).all():
        raise ConfigError("finite scores of members and of non-members are needed, both")
    order_N = np.argsort(-score_N, kind="stable")
    # Equal scores pass a threshold together.
    last = np.flatnonzero(np.append(np.diff(score_N[order_N]) != 0, True))
    found_T = np.append(0, np.cumsum(member_N[order_N])[last])
    false_T = np.append(0, np.cumsum(~member_N[order_N])[last])
    return false_T / (~member_N).sum(), found_T / member_N.sum()


def area(fpr_T: np.ndarray, tpr_T: np.ndarray) -> float:
    """Return the area under a curve of `roc`: 0.5 for a guess."""
    return float((np.diff(fpr_T) * (tpr_T[1:] + tpr_T[:-1]) / 2).sum())


def true_positives(
    score_N: np.ndarray, member_N: np.ndarray, fpr: float, *, confidence: float = 0.95
) -> TruePositives:
    """Return the true positive rate at the threshold that exceeds a false positive rate least.

    Raises:
        ConfigError: There are too few non-members to measure so low a rate.
    """
    member_N = np.asarray(member_N, bool)
    members, others = int(member_N.sum()), int((~member_N).sum())
    if fpr * others < 1:
        raise ConfigError(
            f"fpr: {fpr:g} of {others} non-members is less than one; use at least "
            f"{int(np.ceil(1 / fpr))}, or a higher rate"
        )
    fpr_T, tpr_T = roc(score_N, member_N)
    tpr = float(tpr_T[fpr_T <= fpr].max())
    found, alpha = round(tpr * members), (1 - confidence) / 2
    return TruePositives(
        fpr=fpr,
        tpr=tpr,
        low=float(lower_rate(found, members, alpha=alpha)),
        high=float(upper_rate(found, members, alpha=alpha)),
        confidence=confidence,
    )


def _fit(shadow_SN: np.ndarray, chosen_SN: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray]:
    count_N = chosen_SN.sum(axis=0)
    mean_N = np.where(chosen_SN, shadow_SN, 0).sum(axis=0) / count_N
    square_N = np.where(chosen_SN, (shadow_SN - mean_N) ** 2, 0).sum(axis=0)
    if own:
        variance_N = square_N / (count_N - 1)
    else:
        variance_N = np.full(len(mean_N), square_N.sum() / (count_N - 1).sum())
    return mean_N, np.sqrt(variance_N).clip(_SMALLEST_DEVIATION)


def _log_density(phi_N: np.ndarray, mean_N: np.ndarray, deviation_N: np.ndarray) -> np.ndarray:
    """Return ln N(φ; mean, deviation²) without the constant, which cancels in Λ."""
    log_N: np.ndarray = -np.log(deviation_N) - ((phi_N - mean_N) / deviation_N) ** 2 / 2
    return log_N
