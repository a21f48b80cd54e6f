"""Gradient tracking on heterogeneous quadratics: f_i = a_i (x - b_i)^2 / 2, in float64."""

import numpy as np
import pytest
import torch

from fedsim.topology.ring import Ring
from strategies.dsgd import DSGD
from strategies.gradient_tracking import GradientTracking
from tests.strategies._gossip import on, play

N, LR = 8, 0.1
RNG = np.random.default_rng(1)
A = torch.from_numpy(RNG.uniform(0.5, 2.0, (N, 1)))
B = torch.from_numpy(RNG.normal(size=(N, 1)) * 3)
OPTIMUM = float((A * B).sum() / A.sum())
X0 = torch.zeros(1, dtype=torch.float64)


def steps(count, tracks, empty=()):
    def work(who, sent):
        x = sent["x"].clone()
        c = sent["tracker/x"] if tracks else 0
        for _ in range(count):
            x = x - LR * (A[who] * (x - B[who]) + c)
        travel = torch.full((len(who),), count * LR, dtype=torch.float64)
        for k, client in enumerate(who.tolist()):
            if client in empty:
                x[k], travel[k] = sent["x"][k], 0.0
        return {"x": x}, {"k-gamma": travel} if tracks else {}

    return work


def ended(strategy, work, rounds, masks=None):
    x = X0
    for r in range(rounds):
        x = play(strategy, work, x, np.arange(N) if masks is None else np.flatnonzero(masks[r]))
    return strategy.nodes["x"]


@pytest.mark.parametrize("count", [1, 4])
def test_every_node_reaches_the_exact_optimum_with_a_constant_step(count):
    got = ended(on(GradientTracking(), Ring().graph(N)), steps(count, True), 1200)
    np.testing.assert_allclose(got.numpy(), OPTIMUM, rtol=0, atol=1e-11)


def test_dsgd_ends_at_its_known_bias():
    """The fixed point of x = W (x - γ A (x - b)), which is not the optimum."""
    strategy = on(DSGD(), Ring().graph(N))
    got = ended(strategy, steps(1, False), 600).numpy()
    w, a, b = strategy.weights.toarray(), A.numpy(), B.numpy()
    fixed = np.linalg.solve(np.eye(N) - w @ (np.eye(N) - LR * np.diag(a[:, 0])), w @ (LR * a * b))
    np.testing.assert_allclose(got, fixed, rtol=0, atol=1e-11)
    assert np.abs(got - OPTIMUM).max() > 0.1
    assert abs(got.mean() - OPTIMUM) > 0.005


def test_with_one_step_it_is_diging():
    """Nedic et al.'s recursion, adapt then combine, written down once more with matrices."""
    strategy = on(GradientTracking(), Ring().graph(N))
    w, a, b = strategy.weights.toarray(), A.numpy(), B.numpy()
    x = np.zeros((N, 1))
    y = gradient = a * (x - b)
    mean = X0
    for _ in range(30):
        x = w @ (x - LR * y)
        new = a * (x - b)
        y, gradient = w @ y + new - gradient, new
        mean = play(strategy, steps(1, True), mean, np.arange(N))
        np.testing.assert_allclose(strategy.nodes["x"].numpy(), x, rtol=0, atol=1e-12)


def test_absent_nodes_do_not_move_the_optimum():
    masks = np.random.default_rng(2).random((500, N)) < 0.7
    strategy = on(GradientTracking(server_lr=0.5), Ring().graph(N))
    got = ended(strategy, steps(1, True), 500, masks)
    np.testing.assert_allclose(got.numpy(), OPTIMUM, rtol=0, atol=1e-8)
    assert strategy.sent()["tracker/x"].sum().abs() < 1e-10


def test_a_node_without_samples_has_gradient_zero():
    strategy = on(GradientTracking(), Ring().graph(N))
    got = ended(strategy, steps(1, True, empty=(3,)), 500)
    others = np.arange(N) != 3
    optimum = float((A * B)[others].sum() / A[others].sum())
    np.testing.assert_allclose(got.numpy(), optimum, rtol=0, atol=1e-9)
