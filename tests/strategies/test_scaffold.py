"""SCAFFOLD against hand traces and exact limits."""

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.models.mlp import MLP
from strategies.fedavg import FedAvg
from strategies.scaffold import Scaffold
from tests.helpers import Everyone, classification, distance, make_runtime, run, shares
from tests.strategies._quadratics import ENGINES, PARTLY, quadratics, trace


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_option_two_by_hand(engine):
    """b = (1, 3), lr 0.1, two steps, clients 0, 1, 0, from 0. Round 1: y = .19, c_0 = -.95."""
    strategy = Scaffold()
    x = trace(strategy, quadratics(strategy, [1, 3]), engine, PARTLY)
    assert x == pytest.approx([0.19, 0.81415, 1.010558], abs=5e-7)
    strategy = Scaffold()
    c = trace(
        strategy,
        quadratics(strategy, [1, 3]),
        engine,
        PARTLY,
        note=lambda: strategy._controls.total["weight"].item() / 2,
    )
    assert c == pytest.approx([-0.475, -1.797875, -1.389957], abs=5e-7)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_option_one_by_hand(engine):
    """c_i is the gradient at x: -1 in round 1 (c = -.5), then .19 - 3 (c = -1.905).

    Round 2: y = .19 - .1 (-2.81 - .5) = .521; y = .521 - .1 (-2.479 - .5) = .8189.
    Round 3: c - c_0 = -.905; y = .8189 - .1 (-.1811 - .905) = .92751, then 1.025259.
    """
    strategy = Scaffold(option="I")
    runtime = quadratics(strategy, [1, 3])
    x = trace(strategy, runtime, engine, PARTLY)
    assert x == pytest.approx([0.19, 0.8189, 1.025259], rel=1e-12)
    c = strategy._controls.rows(np.arange(2))["weight"].flatten().tolist()
    assert c == pytest.approx([0.8189 - 1, 0.19 - 3], rel=1e-12)


@pytest.mark.parametrize("option", ["I", "II"])
def test_one_client_is_sgd(option):
    """c = c_1 always, and the correction is nothing."""
    dataset = classification(dtype=torch.float64)
    results = []
    for strategy in (Scaffold(option=option), FedAvg()):
        runtime = make_runtime(
            dataset,
            MLP(hidden=[5]),
            partition=shares(dataset, [30]),
            half=strategy.client_half,
        )
        results.append(run(runtime, Cohort(), strategy=strategy, schedule=Everyone(1))[0])
    assert distance(*results) < 1e-14


@pytest.mark.parametrize("option", ["I", "II"])
def test_drift_is_gone_where_fedavg_keeps_it(option):
    """Optimum of (x-1)^2/2 + 9 (x-3)^2/2: 2.8. Five local steps pull FedAvg elsewhere."""
    work = LocalSGD(lr=0.05, batch_size=1, epochs=None, steps=5)
    got = {}
    for strategy in (Scaffold(option=option), FedAvg()):
        runtime = quadratics(strategy, [1, 3], work=work, curvatures=[1, 9])
        got[type(strategy)] = trace(strategy, runtime, Cohort(), np.ones((40, 2)))[-1]
    assert got[Scaffold] == pytest.approx(2.8, abs=1e-6)
    assert abs(got[FedAvg] - 2.8) > 0.1


def test_who_is_not_admitted_keeps_the_old_control():
    strategy = Scaffold()
    runtime = quadratics(strategy, [1, 3])
    trace(strategy, runtime, Cohort(), [[1, 1]])
    before = strategy._controls.rows(np.arange(2))["weight"].flatten()
    runtime.dataset.train_y[0] = torch.nan  # client 0's next reply is not finite
    trace(strategy, runtime, Cohort(), [[1, 1]])
    after = strategy._controls.rows(np.arange(2))["weight"].flatten()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_claim_of_no_steps_changes_no_control():
    """K times the learning rate is a client's word; divided by, it must not be zero."""

    class Lazy(type(Scaffold().client_half)):
        def upload(self, params, context):
            return {"k-gamma": context.scalar(0.0)}

    strategy = Scaffold()
    runtime = quadratics(strategy, [1, 3])
    runtime.half = Lazy(full_gradient=False)
    assert np.isfinite(trace(strategy, runtime, InProcess(), [[1, 1]])).all()
    assert not strategy._controls.seen.any()
