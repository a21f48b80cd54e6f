"""What a client's data are: hold-out, feature skew, tied and frozen parameters."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import seeds
from fedsim.client import LocalSGD
from fedsim.client.cohort import evaluate_clients
from fedsim.client.plan import make_plan
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.engines.cohort import choose_trainer
from fedsim.models.linear import LinearModel
from fedsim.models.mlp import MLP
from fedsim.models.transformer import Transformer
from fedsim.partition.base import ArrayPartition, train_sizes
from tests.helpers import RAGGED, classification, make_runtime, shares, tokens

CLIENTS = np.arange(len(RAGGED))


class Scaled(ArrayPartition):
    """Client k sees its inputs k + 1 times as large, and counts what it was asked for."""

    def transform(self, client, x):
        return x * (client + 1)


def scaled(dataset) -> Scaled:
    plain = shares(dataset)
    return Scaled(plain.order, plain.offsets)


@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.25, 0.9])
def test_the_hold_out_is_disjoint_complete_and_of_its_size(holdout):
    dataset = classification()
    runtime = make_runtime(dataset, LinearModel(), holdout=holdout)
    for client, n in enumerate(RAGGED):
        train, test = runtime.samples(client), runtime.samples(client, held_out=True)
        assert len(test) == int(n * holdout)
        assert len(train) + len(test) == n
        everything = np.concatenate([train, test])
        assert sorted(everything) == sorted(runtime.partition.indices(client))
        sizes = runtime.partition.sizes(np.array([client]))
        assert train_sizes(sizes, runtime.holdout).tolist() == [len(train)]


def test_the_hold_out_is_the_same_in_every_round_and_process_but_not_for_every_client():
    dataset = classification()
    first = make_runtime(dataset, LinearModel(), holdout=0.5, partition=shares(dataset, [20, 20]))
    second = make_runtime(dataset, LinearModel(), holdout=0.5, partition=shares(dataset, [20, 20]))
    assert np.array_equal(first.samples(1), second.samples(1))
    assert not np.array_equal(
        first.positions(0, 20, held_out=True), first.positions(1, 20, held_out=True)
    )
    expected = seeds.rng(0, 0, 1, "holdout").permutation(20)[10:]
    assert first.positions(1, 20, held_out=True).tolist() == sorted(expected)


@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_pool_gives_each_client_its_own_view_of_its_own_samples(transform, held_out):
    dataset = classification()
    partition = scaled(dataset) if transform else shares(dataset)
    runtime = make_runtime(dataset, LinearModel(), partition=partition, holdout=0.3)
    pool = runtime.pool(CLIENTS.tolist(), held_out=held_out)
    for client in CLIENTS.tolist():
        x, y = pool.take(pool.rows[client])
        index = runtime.samples(client, held_out=held_out)
        factor = client + 1 if transform else 1
        assert torch.equal(x, dataset.train_x[index] * factor)
        assert torch.equal(y, dataset.train_y[index])


def test_without_feature_skew_no_sample_is_copied():
    dataset = classification()
    pool = make_runtime(dataset, LinearModel()).pool([0, 1])
    assert pool.x.data_ptr() == dataset.train_x.data_ptr()


@pytest.mark.parametrize("work", [LocalSGD(batch_size=4, epochs=2), LocalSGD(epochs=None, steps=3)])
@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_a_plan_holds_the_batches_of_one_client_at_a_time(work, transform, holdout):
    dataset = classification()
    partition = scaled(dataset) if transform else shares(dataset)
    runtime = make_runtime(dataset, LinearModel(), partition=partition, holdout=holdout, work=work)
    clients = np.array([6, 0, 3, 1, 7])
    plan = make_plan(runtime, clients, server_round=5)
    steps = (plan.lengths > 0).sum(0)
    assert (np.diff(steps) <= 0).all()
    assert clients[plan.order].tolist() == plan.clients.tolist()
    for column, client in enumerate(plan.clients.tolist()):
        own = runtime.samples(client)
        batches = work.batches(0, 5, client, len(own))
        assert plan.num_examples[column] == len(own)
        assert steps[column] == len(batches)
        for step, positions in enumerate(batches):
            length = plan.lengths[step, column]
            assert length == len(positions)
            rows = plan.rows[step, column]
            factor = client + 1 if transform else 1
            expected = dataset.train_x[own[positions]] * factor
            assert torch.equal(plan.x[rows[:length]], expected)
            assert torch.equal(plan.y[rows[:length]], dataset.train_y[own[positions]])
            assert (rows[length:] == rows[0]).all()


def test_feature_skew_is_applied_by_both_engines_in_training_and_evaluation():
    dataset = classification(dtype=torch.float64)
    trained, scored = {}, {}
    for name, partition in (("plain", shares(dataset)), ("scaled", scaled(dataset))):
        runtime = make_runtime(dataset, MLP(hidden=[4]), partition=partition, holdout=0.3)
        params = runtime.initial_params()
        trainer, plan, _ = choose_trainer(runtime, "rules")
        assert plan == "rules"
        chunk = trainer.train(CLIENTS, 1, params, {})
        columns = evaluate_clients(runtime, CLIENTS, params).metrics
        for row, client in enumerate(chunk.client_index.tolist()):
            one = train_client(
                runtime, client=client, server_round=1, params=params, client_arrays={}
            )
            for key, t in one.params.items():
                torch.testing.assert_close(chunk.arrays[key][row], t, rtol=1e-10, atol=1e-10)
            score = evaluate_client(
                runtime, client=client, server_round=1, params=params, client_arrays={}
            )
            assert {k: columns[k][client] for k in score} == pytest.approx(score, rel=1e-10)
            trained[name, client], scored[name, client] = one.params["output.weight"], score
    assert torch.equal(trained["plain", 0], trained["scaled", 0])  # client 0 sees them as they are
    for client in (2, 4, 6):
        assert not torch.equal(trained["plain", client], trained["scaled", client])
        assert scored["plain", client]["loss"] != scored["scaled", client]["loss"]


def test_training_leaves_the_received_model_alone():
    runtime = make_runtime(classification(), MLP(hidden=[4]))
    params = runtime.initial_params()
    before = {name: t.clone() for name, t in params.items()}
    train_client(runtime, client=0, server_round=1, params=params, client_arrays={})
    choose_trainer(runtime, "rules")[0].train(CLIENTS, 1, params, {})
    assert all(torch.equal(params[name], t) for name, t in before.items())


def test_tied_parameters_are_sent_once_and_constant_buffers_too():
    dataset = tokens()
    runtime = make_runtime(dataset, Transformer(width=4, heads=2, layers=1, tied=True))
    assert "tokens.weight" in runtime.initial_params()
    assert "head.weight" not in runtime.initial_params()
    model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(6), output=nn.Linear(6, 3)))
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    names = set(make_runtime(classification(), lambda: model).initial_params())
    assert {"norm.running_mean", "norm.num_batches_tracked", "output.weight"} <= names
    assert "scratch" not in names


def test_a_received_model_takes_the_runs_precision():
    runtime = make_runtime(classification(), LinearModel())
    doubled = {name: t.double() for name, t in runtime.initial_params().items()}
    assert {t.dtype for t in runtime.received(doubled).values()} == {torch.float32}
