"""FedVARP against hand traces, FedAvg, and the point that skewed participation must not move."""

import numpy as np
import pytest

from fedsim.engines.cohort import Cohort
from fedsim.models.mlp import MLP
from strategies.fedavg import FedAvg
from strategies.fedvarp import FedVARP
from tests.helpers import Everyone, classification, distance, make_runtime, run, shares
from tests.strategies._quadratics import ENGINES, PARTLY, quadratics, trace
from tests.strategies._toy import drive_fast

CENTRES, RATES = np.array([0.0, 1, 2, 10]), np.array([0.9, 0.5, 0.2, 0.05])
"""Mean 3.25; weighed by who takes part, 0.66."""


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_by_hand(engine):
    """b = (1, 3), lr 0.1, two steps: y moves by .19 (b - x). Clients 0, 1, 0, then nobody.

    h_0 = .19. Round 2: Δ = .19 (3 - .19) = .5339, u = .5339 + .095 = .6289.
    """
    strategy = FedVARP()
    x = trace(strategy, quadratics(strategy, [1, 3]), engine, [*PARTLY, [0, 0]])
    assert x == pytest.approx([0.19, 0.8189, 1.025259, 1.025259], abs=5e-7)
    assert x[1] == pytest.approx(0.8189, rel=1e-12)
    assert x[3] == x[2]


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_if_everybody_takes_part_it_is_fedavg(server_lr):
    fedavg, results = FedAvg(weighting="uniform", server_lr=server_lr), []
    for strategy in (FedVARP(server_lr=server_lr), fedavg):
        dataset = classification()
        runtime = make_runtime(dataset, MLP(hidden=[8]), partition=shares(dataset, [9] * 8))
        results.append(run(runtime, Cohort(), strategy=strategy, schedule=Everyone(8), rounds=5)[0])
    assert distance(*results) < 1e-6


def test_skewed_participation_does_not_move_the_fixed_point():
    masks = np.random.default_rng(0).random((1000, 4)) < RATES
    got = {
        type(s): drive_fast(s, masks, CENTRES, lr=0.02)[250:].mean()
        for s in (FedVARP(), FedAvg(weighting="uniform"))
    }
    assert got[FedVARP] == pytest.approx(3.25, abs=0.01)
    assert got[FedAvg] == pytest.approx(0.663245, abs=0.2)


def test_who_is_not_admitted_keeps_the_old_update():
    strategy = FedVARP()
    runtime = quadratics(strategy, [1, 3])
    trace(strategy, runtime, Cohort(), [[1, 1]])
    runtime.dataset.train_y[0] = np.nan
    trace(strategy, runtime, Cohort(), [[1, 1]])
    h = strategy._updates.rows(np.arange(2))["weight"].flatten().tolist()
    assert h == pytest.approx([0.19, 0.57], rel=1e-12)  # both from 0; client 1's second time too
    assert strategy._updates.total["weight"].item() == pytest.approx(0.76, rel=1e-12)
