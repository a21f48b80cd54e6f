"""All strategies with personal models: engines agree, resumed runs go on as if uninterrupted."""

import numpy as np
import pytest

from fedsim.checkpoint import Checkpoint, load_latest, save
from fedsim.config import compose
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.models.mlp import MLP
from fedsim.models.resnet import ResNet
from fedsim.simulation import Simulation
from tests.contract._discover import make
from tests.helpers import RAGGED, Some, classification, distance, make_runtime, run
from tests.strategies._toy import equal

VECTORS, IMAGES = classification(), classification(shape=(1, 8, 8))
NORMALISED = ResNet(widths=[4], groups=2)
CASES = {
    "fedper": ("fedper", {}, "rules"),
    "fedrep": ("fedrep", {"head_share": 0.5}, "rules"),
    "fedbn": ("fedbn", {}, "rules"),
    "ditto": ("ditto", {}, "vmap"),
    "pfedme": ("pfedme", {}, "vmap"),
    "per_fedavg": ("per_fedavg", {}, "vmap"),
    "first order": ("per_fedavg", {"variant": "fo"}, "vmap"),
}


def federation(name, strategy):
    dataset, model = (IMAGES, NORMALISED) if name == "fedbn" else (VECTORS, MLP(hidden=[8]))
    return make_runtime(dataset, model, half=strategy.client_half, holdout=0.4)


@pytest.mark.parametrize("case", CASES)
def test_cohort_is_in_process_with_ragged_clients_partial_participation_and_evaluation(case):
    name, settings, plan = CASES[case]
    rounds = 3 if name == "fedbn" else 6

    def federate(engine):
        strategy = make(name, **settings)
        return run(
            federation(name, strategy),
            engine,
            strategy=strategy,
            rounds=rounds,
            schedule=Some(len(RAGGED), 5),
            evaluate=True,
        )

    engine = Cohort(chunk=3)
    assert engine.grid(federation(name, make(name, **settings))).plan == plan
    expected, reports = federate(InProcess())
    got, others = federate(engine)
    assert distance(got, expected) < 1e-5
    start = federation(name, make(name)).initial_params()
    assert distance(expected, start) > 1e-2
    held_out = [int(n * 0.4) for n in RAGGED]
    for one, other in zip(reports, others, strict=True):
        assert one.admitted == sorted(other.admitted)
        assert other.train == pytest.approx(one.train, rel=1e-4)
        assert one.per_client["client-index"] == [k for k, n in enumerate(held_out) if n]
        for column, values in one.per_client.items():
            assert other.per_client[column] == pytest.approx(values, rel=1e-4)
    assert len(set(reports[-1].per_client["loss"])) > 3


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbn", "ditto", "pfedme", "per_fedavg"])
def test_a_run_over_bytes_is_the_same_to_the_bit(name):
    results = []
    for wire_check in (False, True):
        strategy = make(name)
        results.append(
            run(
                federation(name, strategy),
                InProcess(wire_check=wire_check),
                strategy=strategy,
                rounds=2,
                schedule=Some(len(RAGGED), 5),
                evaluate=True,
            )
        )
    (one, reports), (other, others) = results
    assert equal(one, other)
    assert [r.per_client for r in reports] == [r.per_client for r in others]


SMALL = [
    *("device=cpu", "rounds=4", "partition.num_clients=10"),
    *("participation.clients_per_round=4", "partition.holdout=0.3"),
    *("client.epochs=null", "client.steps=2"),
    *("evaluation.clients=all", "model.hidden=[8]", "partition.alpha=5.0"),
]


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbn", "ditto", "pfedme", "per_fedavg"])
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    engine = "cohort" if CASES[name][2] == "rules" else "in_process"
    words = [*SMALL, f"strategy={name}", f"engine={engine}"]
    if name == "fedbn":
        words = [w for w in words if "hidden" not in w]
        words += ["data.image=true", "model=resnet", "model.widths=[4]", "model.groups=2"]

    config = compose("quickstart", words)

    def rounds(params, done, last, state=None):
        simulation = Simulation(config)
        simulation.last_round = last
        simulation.loop.last_round = last
        if state is not None:
            simulation.strategy.load_state_dict(state)
        start = simulation.runtime.initial_params() if params is None else params
        *_, (model, report) = simulation.loop.run(start, done)
        return model, report, simulation.strategy.state_dict()

    whole, expected, _ = rounds(None, 0, 4)
    half, _, state = rounds(None, 0, 2)
    saved = Checkpoint(
        server_round=2, last_round=4, params=half, state=state, covers={}, metrics_bytes=0
    )
    save(tmp_path / "checkpoint", saved, keep=1)
    loaded = load_latest(tmp_path / "checkpoint")
    params = {n: loaded.params[n] for n in half}
    resumed, report, _ = rounds(params, 2, 4, loaded.state)
    assert equal(resumed, whole)
    assert report.per_client == expected.per_client
    assert len(report.per_client["loss"]) == 10


def test_clients_that_are_asked_hear_nothing_of_others():
    """What one client is sent is its own row, whoever else takes part."""
    strategy = make("fedper")
    runtime = federation("fedper", strategy)
    run(runtime, InProcess(), strategy=strategy, rounds=3, schedule=Some(len(RAGGED), 5))
    everyone = strategy._heads.table.rows(np.arange(len(RAGGED)))
    alone = strategy._heads.table.rows(np.array([2]))
    assert equal({n: t[2:3] for n, t in everyone.items()}, alone)
