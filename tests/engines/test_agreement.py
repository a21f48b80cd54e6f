"""The cohort engine ends with the weights of the sequential one, to float tolerance."""

import numpy as np
import pytest
import torch

from fedsim.client import ClientHalf, LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.models.cnn import CNN
from fedsim.models.linear import LinearModel
from fedsim.models.mlp import MLP
from fedsim.models.resnet import ResNet
from fedsim.models.transformer import Transformer
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from tests.helpers import RAGGED, Some, classification, distance, make_runtime, run, shares, tokens

VECTORS, IMAGES = classification(), classification(shape=(1, 8, 8))
MODELS = {
    "logistic": (LinearModel(), VECTORS),
    "mlp": (MLP(hidden=[8]), VECTORS),
    "cnn": (CNN(channels=[4], hidden=[6]), IMAGES),
    "dropout": (CNN(channels=[4], hidden=[6], dropout=0.3), IMAGES),
}
WORKS = {
    "plain": LocalSGD(lr=0.1, batch_size=4),
    "momentum": LocalSGD(lr=0.05, batch_size=4, epochs=2, momentum=0.9, weight_decay=0.01),
    "decay": LocalSGD(lr=0.1, batch_size=5, weight_decay=0.1, schedule="step", decay_every=3),
    "steps": LocalSGD(lr=0.1, batch_size=4, epochs=None, steps=5, momentum=0.5),
}
CLIENTS, SOME = len(RAGGED), Some(len(RAGGED), 5)


def both(make, engine, **settings):
    """Run both engines; return their distance, how far the model moved, and the reports."""
    runtime = make()
    expected, reports = run(runtime, InProcess(), **settings)
    got, cohort_reports = run(make(), engine, **settings)
    moved = distance(expected, runtime.initial_params())
    return distance(got, expected), moved, (reports, cohort_reports)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("model", MODELS)
def test_ragged_clients_in_partial_participation_for_ten_rounds(model, work):
    part, dataset = MODELS[model]
    apart, moved, (reports, cohort_reports) = both(
        lambda: make_runtime(dataset, part, work=WORKS[work]), Cohort(chunk=3), schedule=SOME
    )
    assert apart < 1e-5
    assert moved > 1e-2
    for one, other in zip(reports, cohort_reports, strict=True):
        assert sorted(one.admitted) == sorted(other.admitted)
        assert one.rejected == other.rejected
        assert other.train == pytest.approx(one.train, rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
@pytest.mark.parametrize("plan", ["rules", "vmap"])
def test_any_chunk_size_and_plan(plan, chunk):
    apart, moved, _ = both(
        lambda: make_runtime(VECTORS, MLP(hidden=[8]), work=WORKS["momentum"]),
        Cohort(chunk=chunk, plan=plan),
        schedule=SOME,
    )
    assert apart < 1e-5
    assert moved > 1e-2


@pytest.mark.parametrize("model", ["logistic", "cnn"])
def test_the_vmap_plan_on_other_models(model):
    part, dataset = MODELS[model]
    engine = Cohort(chunk=3, plan="vmap")
    apart, moved, _ = both(lambda: make_runtime(dataset, part), engine, rounds=5, schedule=SOME)
    assert apart < 1e-5
    assert moved > 1e-2


@pytest.mark.parametrize(
    ("part", "dataset"),
    [
        (ResNet(widths=[4, 8], groups=2), IMAGES),
        (Transformer(width=8, heads=2, layers=1, dropout=0.2, tied=True), tokens()),
    ],
)
def test_deeper_models(part, dataset):
    make = lambda: make_runtime(dataset, part)  # noqa: E731
    assert make_grid_plan(make()) == "rules"
    apart, moved, _ = both(make, Cohort(chunk=3), rounds=3)
    assert apart < 1e-5
    assert moved > 1e-2


def make_grid_plan(runtime) -> str:
    return Cohort().grid(runtime).plan


def test_float64_agrees_to_rounding():
    dataset = classification(dtype=torch.float64)
    make = lambda: make_runtime(dataset, MLP(hidden=[8]), work=WORKS["momentum"])  # noqa: E731
    apart, moved, _ = both(make, Cohort(chunk=3), schedule=SOME)
    assert apart < 1e-13
    assert moved > 1e-2


@pytest.mark.parametrize("strategy", [FedAvg, lambda: FedAvg(weighting="uniform"), FedAU])
def test_other_weights(strategy):
    runtime = make_runtime(VECTORS, LinearModel())
    expected, _ = run(runtime, InProcess(), strategy=strategy(), schedule=SOME)
    got, _ = run(runtime, Cohort(chunk=2), strategy=strategy(), schedule=SOME)
    assert distance(got, expected) < 1e-5


def test_a_correcting_half_that_receives_and_uploads_per_client_arrays():
    """One array per client goes out with the model and comes back changed, under every engine."""

    class Half(ClientHalf):
        def correct(self, grads, params, context):
            return {
                n: g + context.arrays["pull"] * (params[n] - context.start[n])
                for n, g in grads.items()
            }

        def upload(self, params, context):
            return {"pull": context.arrays["pull"] + 1, "bias": params["output.bias"]}

    class Keeps(FedAvg):
        @property
        def client_half(self):
            return Half()

        def client_payload(self, context):
            pull = self.__dict__.setdefault("pull", torch.linspace(0, 1, CLIENTS))
            return {"pull": pull[context.asked]}

        def upload_like(self, context):
            return {"pull": torch.zeros(()), "bias": context.params["output.bias"]}

        def aggregate(self, context, replies):
            for chunk in replies.chunks():
                self.pull[chunk.client_index] = chunk.client_arrays["pull"]
                expected = chunk.arrays["output.bias"]
                assert torch.equal(chunk.client_arrays["bias"], expected)
            return {n: t * 1.01 for n, t in context.params.items()}

    pulls = {}
    for name, engine in {
        "in_process": InProcess(),
        "wire": InProcess(wire_check=True),
        "rules": Cohort(chunk=2, plan="rules"),
        "vmap": Cohort(chunk=2, plan="vmap"),
    }.items():
        runtime = make_runtime(VECTORS, LinearModel(), half=Half())
        strategy = Keeps()
        run(runtime, engine, strategy=strategy, schedule=SOME, rounds=3)
        pulls[name] = strategy.pull
    times = sum(np.isin(np.arange(CLIENTS), SOME.select(r)) for r in (1, 2, 3))
    times[3] = 0  # has no samples, so its reply has no weight and is not admitted
    for pull in pulls.values():
        torch.testing.assert_close(pull, torch.linspace(0, 1, CLIENTS) + torch.from_numpy(times))


@pytest.mark.parametrize("plan", ["rules", "vmap"])
def test_a_client_that_diverges_spoils_nobody_else(plan):
    dataset = classification()
    spoilt = shares(dataset).indices(2)[5]
    dataset.train_x[spoilt] = float("nan")
    runtime = make_runtime(dataset, MLP(hidden=[8]), work=WORKS["momentum"])
    expected, (report,) = run(runtime, InProcess(), rounds=1)
    got, (other,) = run(runtime, Cohort(chunk=8, plan=plan), rounds=1)
    assert report.rejected == other.rejected == {"non-finite": 1, "weight": 1}
    assert sorted(report.admitted) == sorted(other.admitted) == [0, 1, 4, 5, 6, 7]
    assert distance(got, expected) < 1e-5


@pytest.mark.parametrize("wire_check", [False, True])
def test_the_sequential_engine_is_bit_for_bit_repeatable_over_tensors_and_bytes(wire_check):
    runtime = make_runtime(VECTORS, MLP(hidden=[8]), work=WORKS["momentum"])
    expected, reports = run(runtime, InProcess(), schedule=SOME, evaluate=True)
    got, other = run(runtime, InProcess(wire_check=wire_check), schedule=SOME, evaluate=True)
    assert all(torch.equal(got[name], t) for name, t in expected.items())
    assert [r.train for r in reports] == [r.train for r in other]


@pytest.mark.parametrize(
    "engine", [Cohort(chunk=3), Cohort(plan="vmap"), Cohort(plan="sequential")]
)
@pytest.mark.parametrize("model", ["mlp", "dropout"])
def test_each_client_scores_the_same_on_its_own_samples(model, engine):
    part, dataset = MODELS[model]
    runtime = make_runtime(dataset, part, holdout=0.4)
    _, reports = run(runtime, InProcess(), rounds=2, evaluate=True)
    _, others = run(runtime, engine, rounds=2, evaluate=True)
    for one, other in zip(reports, others, strict=True):
        assert set(one.per_client) == {"client-index", "num-examples", "loss", "accuracy"}
        held_out = [int(n * 0.4) for n in RAGGED]
        assert one.per_client["client-index"] == [k for k, n in enumerate(held_out) if n]
        assert one.per_client["num-examples"] == [n for n in held_out if n]
        for name, values in one.per_client.items():
            assert other.per_client[name] == pytest.approx(values, rel=1e-5)
