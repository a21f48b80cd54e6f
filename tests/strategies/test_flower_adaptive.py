"""Flower's server halves with momentum and adaptive steps, against their papers' formulas.

Reddi et al. (arXiv:2003.00295), Algorithm 2, with Δ = mean(y) - x; Hsu et al. (arXiv:1909.06335).
Flower's FedAdam differs from its paper: it corrects the bias, with the round plus one as exponent.
"""

import numpy as np
import pytest

from tests.contract._discover import make
from tests.strategies._toy import ToyGrid, everyone, finish, loop, model, quadratic

START = np.array([0.5, -1.0, 2.0])
B_1, B_2, TAU, ETA = 0.9, 0.99, 1e-3, 0.1


def mean_update(x):
    """Clients of centres 0 and 4 go half way, and have 1 and 3 samples."""
    return 0.5 * (3.0 - x)


def fedavgm(x, m, v, t):
    m = 0.9 * m + mean_update(x)
    return x + m, m, v


def adaptive(second_moment, b_1=B_1, correct=False):
    def step(x, m, v, t):
        delta = mean_update(x)
        m = b_1 * m + (1 - b_1) * delta
        v = second_moment(v, delta**2)
        bias = np.sqrt(1 - B_2 ** (t + 1)) / (1 - B_1 ** (t + 1)) if correct else 1.0
        return x + ETA * bias * m / (np.sqrt(v) + TAU), m, v

    return step


RULES = {
    "fedavgm": fedavgm,
    "fedadam": adaptive(lambda v, d: B_2 * v + (1 - B_2) * d, correct=True),
    "fedyogi": adaptive(lambda v, d: v - (1 - B_2) * d * np.sign(v - d)),
    "fedadagrad": adaptive(lambda v, d: v + d, b_1=0.0),
}


@pytest.mark.parametrize("name", RULES)
def test_five_rounds_by_formula(name):
    def client(message):
        index = grid.client_index(message.metadata.dst_node_id)
        return [quadratic(message, centre=4.0 * index, examples=1 + 2 * index)]

    grid = ToyGrid(2, client)
    strategy = make(name, **({} if name == "fedavgm" else {"eta": ETA}))
    params, _ = finish(loop(strategy, grid, everyone(2, 5)), model(*START))
    x, m, v = START, np.zeros(3), np.zeros(3)
    for t in range(1, 6):
        x, m, v = RULES[name](x, m, v, t)
    np.testing.assert_allclose(params["x"].numpy(), x, rtol=1e-12)


def test_momentum_without_momentum_is_fedavg():
    grid = ToyGrid(1, lambda message: [quadratic(message, centre=4.0)])
    strategies = [make("fedavgm", server_momentum=0.0), make("flower_fedavg")]
    results = [finish(loop(s, grid, everyone(1, 3)), model(*START))[0] for s in strategies]
    np.testing.assert_array_equal(results[0]["x"], results[1]["x"])
