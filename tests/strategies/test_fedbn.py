"""FedBN: which layers are kept, by type; batch normalisation with its statistics; its limit."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.client.sequential import evaluate_client, train_client
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP
from fedsim.models.resnet import ResNet
from strategies.fedavg import FedAvg
from strategies.fedbn import FedBN
from tests.helpers import Everyone, Some, classification, make_runtime, run, shares
from tests.strategies._toy import equal

DATASET = classification(dtype=torch.float64)


class Disguised(nn.BatchNorm1d):
    """Batch normalisation by another name, as a user may derive it."""


def batch_normalised() -> nn.Module:
    """Names do not tell: 'bn' is linear, 'shortcut.1' normalises."""
    model = nn.Sequential()
    model.add_module("bn", nn.Linear(6, 8))
    model.add_module("shortcut", nn.Sequential(nn.ReLU(), Disguised(8), nn.LayerNorm(8)))
    model.add_module("output", nn.Linear(8, 3))
    return model


BATCH = {f"shortcut.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
BATCH |= {"shortcut.1.num_batches_tracked"}
ALL = BATCH | {"shortcut.2.weight", "shortcut.2.bias"}


SIZES = (8, 12, 16, 0, 20, 6, 28, 4)
"""Whose batches of four are never of one sample, which batch normalisation refuses."""


def federation(model, strategy=None, **settings):
    half, partition = strategy and strategy.client_half, shares(DATASET, SIZES)
    return make_runtime(DATASET, model, half=half, partition=partition, **settings)


@pytest.mark.parametrize(("layers", "expected"), [("batch", BATCH), ("all", ALL)])
def test_layers_are_told_by_their_type(layers, expected):
    strategy = FedBN(layers=layers)
    run(federation(batch_normalised, strategy), InProcess(), strategy=strategy, rounds=1)
    assert strategy.personal() == expected


def test_group_normalisation_within_blocks_is_found():
    dataset, strategy = classification(shape=(1, 8, 8)), FedBN()
    runtime = make_runtime(dataset, ResNet(widths=[4, 8], groups=2), half=strategy.client_half)
    run(runtime, Cohort(), strategy=strategy, rounds=1)
    names = set(runtime.initial_params())
    assert strategy.personal() == {n for n in names if "norm" in n}
    assert len(strategy.personal()) == 12


@pytest.mark.parametrize("engine", [InProcess(), InProcess(wire_check=True), Cohort()])
def test_two_rounds_by_the_definition(engine):
    """Each client trains from (x, its layers); the rest is averaged, they are kept and scored."""
    strategy = FedBN(layers="batch")
    runtime = federation(batch_normalised, strategy, holdout=0.5)
    schedule = Some(8, 5)
    got, reports = run(
        runtime, engine, strategy=strategy, rounds=2, schedule=schedule, evaluate=True
    )
    plain = federation(batch_normalised, holdout=0.5)
    x, own = plain.initial_params(), {}
    for server_round in (1, 2):
        replies = []
        for client in schedule.select(server_round).tolist():
            start = {**x, **own.get(client, {})}
            result = train_client(
                plain, client=client, server_round=server_round, params=start, client_arrays={}
            )
            if result.metrics["num-examples"]:
                own[client] = {name: result.params[name] for name in BATCH}
                replies.append(result.params)
        shared = [name for name in x if name not in BATCH]
        x = {**x, **{n: torch.stack([r[n] for r in replies]).mean(0) for n in shared}}
    for name, tensor in x.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-10, atol=1e-12)
    scored = reports[-1].per_client
    for client, loss in zip(scored["client-index"], scored["loss"], strict=True):
        view = {**x, **own.get(int(client), {})}
        expected = evaluate_client(
            plain, client=int(client), server_round=2, params=view, client_arrays={}
        )
        assert loss == pytest.approx(expected["loss"], rel=1e-10)
    counts = {int(row["shortcut.1.num_batches_tracked"]) for row in own.values()}
    assert counts > {1}  # integers survive the table
    means = [row["shortcut.1.running_mean"] for row in own.values()]
    assert not torch.equal(means[0], means[1])


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3)])
def test_on_a_model_without_such_layers_it_is_fedavg_and_says_so(engine, caplog):
    strategy = FedBN()
    with caplog.at_level(logging.WARNING, logger="strategies.fedbn"):
        got, _ = run(
            federation(MLP(hidden=[5]), strategy), engine, strategy=strategy, schedule=Some(8, 5)
        )
    assert [record.getMessage() for record in caplog.records] == [
        "FedBN: the model has no normalisation layer of kind 'all', so this run is FedAvg"
    ]
    plain = federation(MLP(hidden=[5]))
    expected, _ = run(plain, engine, strategy=FedAvg(weighting="uniform"), schedule=Some(8, 5))
    assert equal(got, expected)


def test_kept_layers_of_the_global_model_stay_the_initial_ones():
    strategy = FedBN()
    runtime = federation(batch_normalised, strategy)
    got, _ = run(runtime, InProcess(), strategy=strategy, rounds=2, schedule=Everyone(8))
    start = runtime.initial_params()
    assert all(torch.equal(got[name], start[name]) == (name in ALL) for name in start)
    assert strategy._norms.table.seen.tolist() == [n > 0 for n in SIZES]
    rows = strategy._norms.table.rows(np.array([0, 2]))
    assert rows["shortcut.1.num_batches_tracked"].tolist() == [4, 8]  # two rounds of 2 and 4


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="layers"):
        FedBN(layers="group")
