"""Which plan the cohort engine follows, and what it says when it is not the fastest."""

import logging

import pytest
import torch
from torch import nn

from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.gradient import Plain
from fedsim.engines.cohort import Cohort, bytes_per_client, choose_trainer, default_chunk
from fedsim.engines.in_process import InProcess
from fedsim.models.cnn import CNN
from fedsim.models.linear import LinearModel
from tests.helpers import Some, classification, distance, make_runtime, run

DATASET = classification()


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def with_constant_buffer() -> nn.Module:
    class Whiten(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((6,), 0.3))

        def forward(self, x):
            return x - self.mean

    return nn.Sequential(Whiten(), nn.Linear(6, 3))


def with_branch_on_data() -> nn.Module:
    class Branch(nn.PReLU):
        def forward(self, x):
            return x if x.sum() > 0 else super().forward(x)

    return nn.Sequential(nn.Linear(6, 6), Branch(), nn.Linear(6, 3))


class WholeLoss(ClientHalf):
    def loss(self, params, batch, context):
        return super().loss(params, batch, context) * 2


class Clipped(Plain):
    @property
    def plain(self) -> bool:
        return False


BATCH_NORM = "buffer '1.running_mean' of BatchNorm1d has no layer rule"


@pytest.mark.parametrize(
    ("model", "half", "plan", "why"),
    [
        (LinearModel(), ClientHalf(), "rules", ""),
        (LinearModel(), WholeLoss(), "vmap", "WholeLoss replaces the whole loss"),
        (
            with_constant_buffer,
            ClientHalf(),
            "vmap",
            "buffer '0.mean' of Whiten has no layer rule",
        ),
        (
            with_batch_norm,
            ClientHalf(),
            "sequential",
            f"{BATCH_NORM}; torch.func: training changes buffer '1.running_mean' beside the "
            "parameters",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 3), nn.PReLU()),
            ClientHalf(),
            "vmap",
            "PReLU '1' has no layer rule",
        ),
    ],
)
def test_the_plan_and_the_reason_said_once(caplog, model, half, plan, why):
    runtime = make_runtime(DATASET, model, half=half)
    with caplog.at_level(logging.INFO, logger="fedsim"):
        got, _ = run(runtime, Cohort(chunk=3), rounds=3)
    assert choose_trainer(runtime, "auto")[1:] == (plan, why)
    said = [
        record.getMessage() for record in caplog.records if record.name.startswith("fedsim.engines")
    ]
    assert said == ([f"cohort engine runs '{plan}': {why}"] if why else [])
    expected, _ = run(runtime, InProcess(), rounds=3)
    assert distance(got, expected) < 1e-5
    if plan == "sequential":
        assert all(torch.equal(got[name], t) for name, t in expected.items())


def test_a_branch_on_data_falls_back():
    trainer, plan, why = choose_trainer(make_runtime(DATASET, with_branch_on_data), "auto")
    assert (trainer, plan) == (None, "sequential")
    assert why.startswith("Branch '1' has no layer rule; torch.func: ")


def test_dropout_outside_the_rules_falls_back():
    part = CNN(channels=[2], hidden=[3], dropout=0.5)
    runtime = make_runtime(classification(shape=(1, 4, 4)), part, half=WholeLoss())
    run(runtime, InProcess(), rounds=1)  # leaves the last client's generators in the layers
    _, plan, why = choose_trainer(runtime, "auto")
    assert plan == "sequential"
    assert why.endswith("torch.func: dropout draws its masks outside of it")


def test_what_was_asked_for_is_what_runs():
    runtime = make_runtime(DATASET, LinearModel())
    for plan in ("rules", "vmap", "sequential"):
        assert choose_trainer(runtime, plan)[1:] == (plan, "")


def test_another_gradient_estimator_runs_sequentially():
    runtime = make_runtime(DATASET, LinearModel())
    runtime.estimator = Clipped()
    assert choose_trainer(runtime, "auto") == (None, "sequential", "Clipped has no stacked form")


def test_batch_norm_statistics_are_averaged_like_weights():
    runtime = make_runtime(DATASET, with_batch_norm)
    params, _ = run(runtime, Cohort(), rounds=3, schedule=Some(8, 4))
    assert params["1.num_batches_tracked"].dtype == torch.int64
    assert params["1.num_batches_tracked"] > 0
    assert params["1.running_mean"].abs().max() > 0


def dense(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), nn.Linear(hidden, 3))


@pytest.mark.parametrize(("hidden", "chunk"), [(10, 64), (1000, 64), (10_000, 27), (100_000, 4)])
def test_the_default_chunk_keeps_weights_and_activations_in_the_cache(hidden, chunk):
    runtime = make_runtime(DATASET, lambda: dense(hidden), work=LocalSGD(batch_size=5))
    # float32; weights 7h + 3(h + 1); outputs of 5 samples h + 3
    size = 4 * (10 * hidden + 3 + 5 * (hidden + 3))
    assert bytes_per_client(runtime) == size
    assert default_chunk(runtime) == chunk == max(4, min(64, 2**24 // size))


def test_a_small_convolution_is_large_by_its_activations():
    dataset = classification(shape=(1, 64, 64))
    runtime = make_runtime(dataset, CNN(channels=[8], hidden=[4]), work=LocalSGD(batch_size=10))
    assert default_chunk(runtime) < 10
    assert not any(layer._forward_hooks for layer in runtime.model.modules())
