"""Membership inference: LiRA on normals, where the best attack's rates are known."""

import numpy as np
import pytest

from fedsim.errors import ConfigError
from privacy.audit import membership
from privacy.audit.tradeoff import gdp_tpr


def test_scaled_confidence_by_hand() -> None:
    """Three classes, p = (0.5, 0.3, 0.2): ln(0.5/0.5) = 0, ln(0.2/0.8)."""
    logits = np.log([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    phi = membership.scaled_confidence(logits, np.array([0, 2]))
    np.testing.assert_allclose(phi, [0, np.log(0.25)], atol=1e-15)
    sure = membership.scaled_confidence(np.array([[1000.0, 0.0]]), np.array([0]))
    np.testing.assert_allclose(sure, [1000.0])


def test_rates_by_hand() -> None:
    """Members 4, 3, 1; others 3, 2: the two 3s pass together."""
    score, member = np.array([4.0, 3, 1, 3, 2]), np.array([True, True, True, False, False])
    fpr, tpr = membership.roc(score, member)
    np.testing.assert_allclose(fpr, [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(tpr, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert membership.area(fpr, tpr) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    found = membership.true_positives(score, member, 0.5)
    assert found.tpr == pytest.approx(2 / 3) and found.low < 2 / 3 < found.high
    with pytest.raises(ConfigError, match="less than one"):
        membership.true_positives(score, member, 0.1)


def shadows(
    models: int, samples: int, mu: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """φ ~ N(base_i + μ s_i in, s_i²) with a base and a scale s_i of each sample's own."""
    rng = np.random.default_rng(seed)
    base, scale = rng.normal(0, 5, samples), rng.uniform(0.5, 2, samples)
    member_SN = rng.random((models + 1, samples)) < 0.5
    phi_SN = base + scale * (mu * member_SN + rng.standard_normal(member_SN.shape))
    return phi_SN[0], member_SN[0], phi_SN[1:], member_SN[1:]


def test_lira_reaches_the_best_attack_and_a_threshold_does_not() -> None:
    """The most powerful test of N(0, 1) against N(μ, 1) has TPR = Φ(Φ⁻¹(FPR) + μ)."""
    phi, member, shadow, had = shadows(256, 8000, 2.0)
    score = membership.lira(phi, shadow, had)
    for fpr in (0.01, 0.1):
        best = float(gdp_tpr(np.array([fpr]), 2.0)[0])
        found = membership.true_positives(score, member, fpr)
        assert found.tpr == pytest.approx(best, abs=0.04)
        assert membership.true_positives(phi, member, fpr).tpr < 0.6 * best
    fpr, tpr = membership.roc(score, member)
    assert membership.area(fpr, tpr) == pytest.approx(0.9214, abs=0.01)  # Φ(2/√2)


def test_nothing_is_found_where_nothing_leaks() -> None:
    phi, member, shadow, had = shadows(64, 8000, 0.0)
    found = membership.true_positives(membership.lira(phi, shadow, had), member, 0.01)
    assert found.low < 0.01 + 3 * np.sqrt(0.01 / 4000) and found.tpr < 0.02


def test_one_variance_for_all_where_shadows_are_few() -> None:
    """Equal scales, so one variance is right; each sample's own, of about four models, is not."""
    rng = np.random.default_rng(1)
    had = rng.permuted(np.arange(9)[:, None] % 2 == np.zeros(6000), axis=0)
    phi = rng.normal(0, 5, 6000) + 2.0 * had + rng.standard_normal(had.shape)
    pooled = membership.lira(phi[0], phi[1:], had[1:])
    own = membership.lira(phi[0], phi[1:], had[1:], per_sample_from=2)
    rates = [membership.true_positives(s, had[0], 0.01).tpr for s in (pooled, own)]
    assert rates[0] > rates[1] + 0.05


def test_density_ratio_by_hand() -> None:
    """In: 1, 3 (mean 2); out: −1, 1 (mean 0); pooled variance 2: Λ(2) = 4/4 − 0 = 1."""
    shadow = np.array([[1.0], [3.0], [-1.0], [1.0]])
    had = np.array([[True], [True], [False], [False]])
    score = membership.lira(np.array([2.0]), shadow, had)
    np.testing.assert_allclose(score, [1.0], atol=1e-12)
    with pytest.raises(ConfigError, match="train more"):
        membership.lira(np.array([2.0]), shadow[:3], had[:3])
