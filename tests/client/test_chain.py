"""Plain steps of a chain, on factors or not, end where one client at a time does."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.chain import takes_plain_steps
from fedsim.engines.cohort import Cohort, bytes_per_client, choose_trainer, default_chunk
from fedsim.engines.in_process import InProcess
from fedsim.models.mlp import MLP
from fedsim.records import LateRows, UpdateSum
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from strategies.scaffold import Scaffold
from strategies.trimmed_mean import TrimmedMean
from tests.helpers import Some, classification, distance, make_runtime, regression, run, shares

SIZES = (7, 1, 12, 5, 10, 3, 25, 4)
WIDE = classification(shape=(8, 10))
WORK = LocalSGD(lr=0.1, batch_size=4)


class Smoothed(ClientHalf):
    """A criterion of its own, and one batch at a time."""

    def criterion(self, outputs, batch, context):
        return nn.functional.cross_entropy(outputs, batch.y, label_smoothing=0.1)


MODELS = {
    "first layer": MLP(hidden=[60]),
    "two layers": MLP(hidden=[90, 90], activation="tanh"),
    "without bias": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(80, 70, bias=False), nn.ReLU(), nn.Identity(), nn.Linear(70, 3)
    ),
}


def late(runtime, clients=(0, 2, 4), start=None):
    """Return the chunk that clients train, and which of its arrays are kept as factors."""
    trainer, plan, _ = choose_trainer(runtime, "auto")
    assert plan == "rules"
    chunk = trainer.train(np.array(clients), 1, start or runtime.initial_params(), {})
    return chunk, set(chunk.arrays.late) if isinstance(chunk.arrays, LateRows) else set()


@pytest.mark.parametrize("half", [ClientHalf, Smoothed])
@pytest.mark.parametrize("model", MODELS)
def test_ragged_clients_end_where_one_at_a_time_does(model, half):
    def make():
        return make_runtime(
            WIDE, MODELS[model], partition=shares(WIDE, SIZES), work=WORK, half=half()
        )

    runtime = make()
    assert len(late(runtime)[1]) == (2 if model == "two layers" else 1)
    for strategy in (FedAvg, FedAU, TrimmedMean):  # the last one asks for every client's model
        settings = {"rounds": 4, "schedule": Some(len(SIZES), 5)}
        got, reports = run(make(), Cohort(chunk=3), strategy=strategy(), **settings)
        expected, others = run(make(), InProcess(), strategy=strategy(), **settings)
        assert distance(got, expected) < 1e-5 < 1e-2 < distance(got, runtime.initial_params())
        for one, other in zip(reports, others, strict=True):
            assert one.train == pytest.approx(other.train, rel=1e-4)


def test_regression_in_float64():
    dataset = regression(inputs=80)
    make = lambda: make_runtime(dataset, MLP(hidden=[60]), partition=shares(dataset, SIZES))  # noqa: E731
    assert late(make())[1]
    got, _ = run(make(), Cohort(chunk=3), rounds=3)
    expected, _ = run(make(), InProcess(), rounds=3)
    assert distance(got, expected) < 1e-12


def test_models_are_made_when_somebody_looks_and_are_the_same():
    runtime = make_runtime(WIDE, MLP(hidden=[60]), partition=shares(WIDE, SIZES), work=WORK)
    start = runtime.initial_params()
    chunk, names = late(runtime, start=start)
    assert names == {"hidden1.weight"}
    summed, made = UpdateSum(start), UpdateSum(start)
    weights = np.array([1.0, 5.0, 3.0])
    summed.add(chunk.arrays, weights)
    assert set(chunk.arrays.late) == names  # nothing was made for a sum
    plain = {**chunk.arrays}
    assert [list(t.shape[1:]) for t in plain.values()] == [list(t.shape) for t in start.values()]
    assert not chunk.arrays.late
    assert chunk.arrays["hidden1.weight"] is plain["hidden1.weight"]
    made.add(plain, weights)
    for name in start:
        torch.testing.assert_close(summed.sums[name], made.sums[name], rtol=1e-4, atol=1e-6)


def test_a_client_whose_data_explode_is_refused_and_no_other():
    def make():
        dataset = classification(shape=(8, 10))
        partition = shares(dataset, SIZES)
        dataset.train_x[partition.indices(2)[3]] = torch.inf
        return make_runtime(dataset, MLP(hidden=[60]), partition=partition, work=WORK)

    assert late(make(), (0, 2, 4))[1]
    (got, (_, report)), (expected, (_, other)) = (
        run(make(), engine, rounds=2) for engine in (Cohort(chunk=8), InProcess())
    )
    assert report.rejected == other.rejected == {"non-finite": 1}
    assert 2 not in report.admitted
    assert len(report.admitted) == len(SIZES) - 1
    assert distance(got, expected) < 1e-5


@pytest.mark.parametrize(
    ("half", "work", "plain"),
    [
        (ClientHalf(), WORK, True),
        (FedAU().client_half, WORK, True),
        (FedProx().client_half, WORK, False),
        (Scaffold().client_half, WORK, False),
        (ClientHalf(), LocalSGD(momentum=0.5), False),
        (ClientHalf(), LocalSGD(weight_decay=0.1), False),
    ],
)
def test_who_takes_plain_steps(half, work, plain):
    runtime = make_runtime(WIDE, MLP(hidden=[60]), half=half, work=work)
    assert takes_plain_steps(runtime) == plain
    if type(half) is ClientHalf:
        assert bool(late(runtime)[1]) == plain


def test_too_many_samples_and_clients_without_any_are_not_for_factors():
    runtime = make_runtime(WIDE, MLP(hidden=[60]), work=LocalSGD(batch_size=4, epochs=10))
    assert late(runtime, (0, 2))[1] == set()
    runtime = make_runtime(WIDE, MLP(hidden=[60]), work=WORK)
    assert late(runtime, (0, 3))[1] == set()  # client 3 has no samples


def test_factors_let_more_clients_train_at_once():
    partition = shares(WIDE, [5] * 20)
    runtime = make_runtime(WIDE, MLP(hidden=[2000]), partition=partition, work=WORK)
    grid = Cohort().grid(runtime)
    # 2000 (80 + 1) + 3 (2000 + 1) weights, outputs of 4 samples; 2 batches of 4 rows as factors
    size = 4 * (168_003 + 4 * (80 + 2000 + 2000 + 3))
    assert bytes_per_client(runtime) == size
    factors = 4 * (160_000 - 8 * 2080)
    assert default_chunk(runtime) == 2**24 // size == 22
    assert grid.chunk == min(64, 2**24 // (size - factors)) == 64
    slow = make_runtime(
        WIDE, MLP(hidden=[2000]), partition=partition, work=LocalSGD(batch_size=4, momentum=0.5)
    )
    assert Cohort().grid(slow).chunk == 22
