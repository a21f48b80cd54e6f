"""The closed-form risk against Monte Carlo, its exact limits, and what it recommends."""

import numpy as np
import pytest

from privacy.aggregate_labels import AggregateLabels
from privacy.aggregate_risk import RHOS, best, risk

D = 200
POINTS = [
    (6, 2, 0.3, 1.0),
    (6, 2, 0.02, 0.3),
    (6, 3, 0.1, 1.0),
    (4, 2, 1.0, 0.5),
    (5, 4, 0.0, 1.0),  # 5/4 bags per feature: near the explosion
    (3, 4, 2.0, 4.0),  # fewer bags than features
]


def draw(n_d, k, rhos, variance, seed):
    """‖θ̂ − θ‖² of one draw for each ρ with ‖θ‖ = 1, by a solver on bags, not by the proof."""
    rng = np.random.default_rng([seed, n_d, k])
    m = n_d * D // k
    theta = rng.normal(size=D)
    theta /= np.linalg.norm(theta)
    x = rng.normal(size=(m, k, D))
    y = (x @ theta + variance**0.5 * rng.normal(size=(m, k))).mean(1)
    center = x.mean(1)
    away = (x - center[:, None]).reshape(-1, D)
    within, between = away.T @ away / k, center.T @ center
    found = [np.linalg.solve(between + rho * within, center.T @ y) for rho in rhos]
    return [float(np.square(theta_hat - theta).sum()) for theta_hat in found]


@pytest.mark.parametrize("point", [p for p in POINTS if p[2] > 0 or p[0] > p[1]], ids=str)
def test_monte_carlo_is_within_four_standard_errors(point):
    n_d, k, rho, variance = point
    draws = np.array([draw(n_d, k, [rho], variance, seed)[0] for seed in range(24)])
    exact = float(risk(n=n_d * D, d=D, k=k, rho=rho, variance=variance))
    error = draws.std(ddof=1) / len(draws) ** 0.5
    assert error < 0.08 * exact
    assert abs(draws.mean() - exact) < 4 * error


def test_the_limits_are_exact():
    n, d = 6000.0, 200.0
    delta = d / n
    for k in (1, 2, 5, 10):  # no bias; variance as of n/k samples with k times as many unknowns
        expected = 2.0 * k * delta / (1 - k * delta)
        assert float(risk(n=n, d=d, k=k, rho=0.0, variance=2.0)) == pytest.approx(expected)
        tiny = float(risk(n=n, d=d, k=k, rho=1e-9, variance=2.0))
        assert tiny == pytest.approx(expected, rel=1e-6)
    for k in (2, 5):
        t = delta / (1 - delta)
        expected = (k - 1) * (k - 1 + t) / k**2 + 2.0 * t / k
        assert float(risk(n=n, d=d, k=k, rho=1.0, variance=2.0)) == pytest.approx(expected)
    shrunk = float(risk(n=1e12, d=d, k=4, rho=1.0, variance=2.0))  # θ̂ = θ/k
    assert shrunk == pytest.approx((1 - 1 / 4) ** 2, rel=1e-6)
    assert float(risk(n=n, d=d, k=3, rho=1e9, variance=2.0)) == pytest.approx(1, rel=1e-3)


def test_the_instance_loss_shrinks_to_one_over_k():
    """Acceptance 3, by simulation: many samples, few features."""
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(100_000, 4, 3)), np.array([1.0, -2.0, 0.5])
    y = (x @ theta).mean(1)
    flat = x.reshape(-1, 3)
    found = np.linalg.lstsq(flat, np.repeat(y, 4), rcond=None)[0]
    assert np.abs(found - theta / 4).max() < 4 * 0.005


def test_shapes_of_the_curves():
    n, d = 4000, 200
    sizes = (2, 4, 8, 12, 16, 18, 19)
    for k in sizes:  # the interpolated loss is better than both, well between them
        at = risk(n=n, d=d, k=k, rho=RHOS, variance=1.0)
        ends = min(at[0], float(risk(n=n, d=d, k=k, rho=1.0, variance=1.0)))
        assert at.min() < (0.92 if k == 2 else 0.8) * ends
        assert 0.01 < RHOS[at.argmin()] < 0.3
    bag = [float(risk(n=n, d=d, k=k, rho=0.0, variance=1.0)) for k in sizes]
    assert np.all(np.diff(bag) > 0) and bag[-1] > 10 * bag[3]
    assert np.isinf(float(risk(n=n, d=d, k=20, rho=0.0, variance=1.0)))
    rhos = [best(n=n, d=d, variance_at={4: v})[4].rho for v in (0.5, 1.0, 4.0)]
    assert rhos == sorted(rhos) and rhos[0] < rhos[-1]
    assert rhos[1] == pytest.approx(0.063, rel=0.08)


def test_measured_the_interpolated_loss_beats_the_better_of_the_two():
    """On the same draws, at the ρ that the closed form recommends: by over 4 standard errors."""
    for n_d, k in ((10, 4), (8, 6)):
        rho = best(n=n_d * D, d=D, variance_at={k: 1.0})[k].rho
        draws = np.array([draw(n_d, k, (rho, 0.0, 1.0), 1.0, seed) for seed in range(6)])
        gain = draws[:, 1:].min(1) - draws[:, 0]
        assert gain.mean() > 4 * gain.std(ddof=1) / len(gain) ** 0.5


def test_the_best_bag_grows_as_epsilon_falls():
    part = [AggregateLabels(epsilon=e, assumed_noise=1.0, assumed_signal=1.0) for e in
            (8, 4, 2, 1, 0.5, 0.25)]  # fmt: skip
    found = [p.recommend(n=10_000, d=200, bound=3 * 2**0.5).k for p in part]
    assert found == sorted(found)
    assert found[0] == 1 and found[-1] >= 4
    # Under ρ = 0 a bag of one is always best: the interplay needs ρ.
    for p in part:
        risks = [
            float(risk(n=10_000, d=200, k=k, rho=0.0, variance=p._variance(k, 4.2)))
            for k in range(1, 12)
        ]
        assert int(np.argmin(risks)) == 0
