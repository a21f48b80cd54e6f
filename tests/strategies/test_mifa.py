"""MIFA against hand traces, in both of its forms; rounds in which nobody replies move it too."""

import numpy as np
import pytest

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP
from fedsim.strategy import Round
from strategies.fedavg import FedAvg
from strategies.mifa import MIFA
from tests.helpers import Everyone, classification, distance, make_runtime, run, shares
from tests.strategies._quadratics import ENGINES, PARTLY, quadratics, trace
from tests.strategies._toy import Stacked, drive_fast, model
from tests.strategies.test_fedvarp import CENTRES, RATES


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_from_zero_by_hand(engine):
    """b = (1, 3), lr 0.1, two steps: y moves by .19 (b - x). Clients 0, 1, 0, then nobody."""
    strategy = MIFA()
    x = trace(strategy, quadratics(strategy, [1, 3]), engine, [*PARTLY, [0, 0]])
    assert x == pytest.approx([0.095, 0.465975, 0.792682, 1.119390], abs=5e-7)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_waiting_for_all_by_hand(engine):
    """Round 1 stays at 0. Round 2: h = (.19, .57), x = .38; then h_0 = .19 · .62, and so on."""
    strategy = MIFA(init="wait_all")
    x = trace(strategy, quadratics(strategy, [1, 3]), engine, [*PARTLY, [0, 0]])
    second = 0.38 + (0.19 * 0.62 + 0.57) / 2
    expected = [0.0, 0.38, second, second + (0.19 * 0.62 + 0.57) / 2]
    assert x == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_stored_over_the_learning_rate_by_hand(engine):
    """One step at 0.1, 0.05, 0.025: h_i is b_i - x, and each round takes its own rate."""
    work = LocalSGD(
        lr=0.1, batch_size=1, epochs=None, steps=1, schedule="step", decay=0.5, decay_every=1
    )
    strategy = MIFA(store="delta_over_lr")
    x = trace(strategy, quadratics(strategy, [1, 3], work=work), engine, [[1, 0], [0, 1], [0, 0]])
    assert x == pytest.approx([0.05, 0.05 + 0.025 * 3.95, 0.05 + 0.0375 * 3.95], rel=1e-12)
    strategy = MIFA()  # whose absent clients repeat the large step of the first round
    other = trace(strategy, quadratics(strategy, [1, 3], work=work), engine, [[1, 0], [0, 1]])
    assert other == pytest.approx([0.05, 0.05 + (0.1 + 0.05 * 2.95) / 2], rel=1e-12)


def test_at_a_constant_rate_both_stores_are_the_same():
    traces = []
    for store in ("delta", "delta_over_lr"):
        strategy = MIFA(store=store)
        traces.append(trace(strategy, quadratics(strategy, [1, 3]), Cohort(), [*PARTLY, [0, 0]]))
    assert traces[0] == pytest.approx(traces[1], rel=1e-13)


def test_a_server_that_knows_no_learning_rate_says_so():
    with pytest.raises(ConfigError, match="use store: delta"):
        context = Round(server_round=1, num_clients=1, asked=np.arange(0), params=model(0.0))
        MIFA(store="delta_over_lr").aggregate(context, Stacked())


def test_if_everybody_takes_part_it_is_fedavg():
    dataset, results = classification(), []
    for strategy in (MIFA(), FedAvg(weighting="uniform"), MIFA(init="wait_all")):
        runtime = make_runtime(dataset, MLP(hidden=[8]), partition=shares(dataset, [9] * 8))
        results.append(run(runtime, Cohort(), strategy=strategy, schedule=Everyone(8), rounds=5)[0])
    assert distance(results[0], results[1]) < 1e-6
    assert distance(results[2], results[1]) < 1e-6


def test_skewed_participation_does_not_move_the_fixed_point():
    masks = np.random.default_rng(0).random((1000, 4)) < RATES
    x = drive_fast(MIFA(), masks, CENTRES, lr=0.02)
    assert x[250:].mean() == pytest.approx(3.25, abs=0.01)


def test_clients_that_never_take_part_are_not_waited_for():
    strategy = MIFA(init="wait_all")
    x = trace(strategy, quadratics(strategy, [1, 3]), InProcess(), [[1, 0], [1, 0]])
    assert x[0] == pytest.approx(0.095, rel=1e-12)


def test_waiting_survives_a_resume():
    strategy = MIFA(init="wait_all")
    trace(strategy, quadratics(strategy, [1, 3]), InProcess(), [[1, 0]])
    second = MIFA(init="wait_all")
    second.load_state_dict(strategy.state_dict())
    assert trace(second, quadratics(second, [1, 3]), InProcess(), [[0, 1]]) == [
        pytest.approx(0.38, rel=1e-12)
    ]
