"""FedDyn against hand traces, and its fixed point where FedAvg has another."""

import numpy as np
import pytest

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from tests.strategies._quadratics import ENGINES, quadratics, trace

EXACT = LocalSGD(lr=1 / 1.5, batch_size=1, epochs=None, steps=1)
"""One step of 1/(1 + α) solves (θ - b)^2/2 - λθ + α/2 (θ - x)^2, for α = 0.5."""


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_exact_solves_by_hand(engine):
    """b = (1, 3), α = .5. Round 1: θ = (2/3, 2), h = -2/3, x = 4/3 + 4/3."""
    strategy = FedDyn(alpha=0.5)
    x = trace(strategy, quadratics(strategy, [1, 3], work=EXACT), engine, np.ones((3, 2)))
    assert x == pytest.approx([2.666667, 2.222222, 2.074074], abs=5e-7)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_one_of_two_by_hand(engine):
    """Client 0 alone: θ = 2/3, λ_0 = -1/3, h = -1/6, x = 2/3 + 1/3. Then nobody. Then client 1:

    (θ - 3) + (θ - 1)/2 = 0: θ = 7/3, λ_1 = -2/3, h = -1/2, x = 7/3 + 1. Then client 0, with λ_0:
    (θ - 1) + 1/3 + (θ - 10/3)/2 = 0: θ = 14/9, λ_0 = 5/9, h = -1/18, x = 14/9 + 1/9.
    """
    strategy = FedDyn(alpha=0.5)
    runtime = quadratics(strategy, [1, 3], work=EXACT)
    x = trace(strategy, runtime, engine, [[1, 0], [0, 0], [0, 1], [1, 0]])
    assert x == pytest.approx([1, 1, 10 / 3, 5 / 3], rel=1e-12)
    duals = strategy._duals.rows(np.arange(2))["weight"].flatten().tolist()
    assert duals == pytest.approx([5 / 9, -2 / 3], rel=1e-12)


@pytest.mark.parametrize("steps", [3, 8])
def test_the_fixed_point_is_the_optimum_whatever_the_steps(steps):
    """2.8 for curvatures 1 and 9; where λ_i is the gradient of client i."""
    work = LocalSGD(lr=0.1, batch_size=1, epochs=None, steps=steps)
    got = {}
    for strategy in (FedDyn(alpha=2.0), FedAvg()):
        runtime = quadratics(strategy, [1, 3], work=work, curvatures=[1, 9])
        got[type(strategy)] = trace(strategy, runtime, Cohort(), np.ones((40, 2)))[-1]
    assert got[FedDyn] == pytest.approx(2.8, abs=1e-6)
    assert abs(got[FedAvg] - 2.8) > 0.2
