"""Flower's own strategies run unchanged on both engines, and agree."""

import gc

import pytest
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedsim.client import LocalSGD
from fedsim.client.sequential import TRAIN_LOSS
from fedsim.engines.cohort import Cohort
from fedsim.engines.flwr_compat import quiet_flower
from fedsim.engines.in_process import InProcess
from fedsim.models.mlp import MLP
from tests.helpers import Everyone, Some, classification, distance, make_runtime, run, shares

DATASET = classification()
SIZES = [11, 9, 10, 8, 12, 10, 7, 13]
STRATEGIES = {
    FedAvg: {},
    FedAvgM: {"server_momentum": 0.9},
    FedAdam: {},
    FedAdagrad: {},
    FedYogi: {},
    FedProx: {"proximal_mu": 0.1},
    FedMedian: {},
    FedTrimmedAvg: {"beta": 0.2},
    Krum: {"num_malicious_nodes": 1},
    MultiKrum: {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    Bulyan: {"num_malicious_nodes": 1},
    QFedAvg: {"client_learning_rate": 0.1, "train_loss_key": TRAIN_LOSS},
}


@pytest.fixture
def _quick_collections():
    """Some of Flower's strategies collect garbage after every client; keep ours out of its way."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_engines_agree(strategy):
    quiet_flower()
    settings = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    results, everyone = {}, Everyone(len(SIZES))
    for name, engine in {"in_process": InProcess(), "cohort": Cohort(chunk=3)}.items():
        runtime = make_runtime(
            DATASET,
            MLP(hidden=[8]),
            partition=shares(DATASET, SIZES),
            holdout=0.3,
            work=LocalSGD(lr=0.1, batch_size=4),
        )
        made = strategy(**STRATEGIES[strategy], **settings)
        results[name] = run(
            runtime, engine, strategy=made, rounds=4, schedule=everyone, evaluate=True
        )
    (expected, reports), (got, others) = results["in_process"], results["cohort"]
    assert distance(got, expected) < 1e-5
    assert distance(expected, runtime.initial_params()) > 1e-3
    for one, other in zip(reports, others, strict=True):
        assert sorted(one.admitted) == sorted(other.admitted) == list(range(len(SIZES)))
        assert other.train == pytest.approx(one.train, rel=1e-4)
        assert other.clients == pytest.approx(one.clients, rel=1e-4)


def test_they_sample_the_same_clients_among_the_rounds_participants():
    quiet_flower()
    schedule = Some(len(SIZES), 6)
    asked = []
    for engine in (InProcess(), InProcess(wire_check=True), Cohort(chunk=3)):
        runtime = make_runtime(DATASET, MLP(hidden=[8]), partition=shares(DATASET, SIZES))
        strategy = FedAvg(
            fraction_train=0.5, min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0
        )
        _, reports = run(runtime, engine, strategy=strategy, rounds=5, schedule=schedule)
        asked.append([r.asked for r in reports])
    assert asked == [[3] * 5] * 3
