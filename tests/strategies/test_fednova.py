"""FedNova: hand-computed rounds, its a-vectors in closed form, and FedAvg as a limit."""

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.models.mlp import MLP
from fedsim.records import Chunk
from fedsim.strategy import Round
from strategies.fedavg import FedAvg
from strategies.fednova import FedNova, accumulated
from strategies.fedprox import FedProx
from tests.helpers import Everyone, classification, distance, make_runtime, run
from tests.strategies._quadratics import ENGINES, quadratics, trace
from tests.strategies._toy import Stacked, everyone, federate, model

ONE_EPOCH = LocalSGD(lr=0.1, batch_size=1)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_one_and_four_steps_by_hand(engine):
    """y = .1 and 3 (1 - .9^4) = 1.0317; x = 2.5 · (.1 + 1.0317 / 4) / 2."""
    strategy = FedNova(weighting="uniform")
    runtime = quadratics(strategy, [1, 3], counts=[1, 4], work=ONE_EPOCH)
    (x,) = trace(strategy, runtime, engine, [[1, 1]])
    assert x == pytest.approx(0.447406, abs=5e-7)
    assert x == pytest.approx(2.5 * (0.1 + 1.0317 / 4) / 2, rel=1e-12)


def test_weights_by_samples():
    """p = (1/5, 4/5): τ_eff = 3.4; x = 3.4 · (.2 · .1 + .8 · 1.0317 / 4)."""
    strategy = FedNova()
    runtime = quadratics(strategy, [1, 3], counts=[1, 4], work=ONE_EPOCH)
    (x,) = trace(strategy, runtime, Cohort(), [[1, 1]])
    assert x == pytest.approx(3.4 * (0.02 + 0.2 * 1.0317), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("momentum", "mu"), [(0.9, 0.0), (0.0, 2.0), (0.5, 2.0)])
def test_momentum_and_proximal_steps_against_plain_python(engine, momentum, mu):
    moved, norms = [], []
    for b, steps in ((1.0, 1), (3.0, 4)):
        y = v = e = u = 0.0
        for _ in range(steps):
            v = momentum * v + (y - b) + mu * y
            y -= 0.1 * v
            u = momentum * u + 1 - 0.1 * mu * e
            e += u
        moved.append(y)
        norms.append(e)
    expected = np.mean(norms) * np.mean(np.array(moved) / norms)
    work = LocalSGD(lr=0.1, batch_size=1, momentum=momentum)
    strategy = FedNova(mu=mu, weighting="uniform")
    runtime = quadratics(strategy, [1, 3], counts=[1, 4], work=work)
    (x,) = trace(strategy, runtime, engine, [[1, 1]])
    assert x == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_norms_in_closed_form(steps):
    rho, alpha = 0.9, 0.02
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert accumulated(steps, 0.0, 0.0) == steps
    assert accumulated(steps, rho, 0.0) == pytest.approx(momentum, rel=1e-11)
    proximal = (1 - (1 - alpha) ** steps) / alpha
    assert accumulated(steps, 0.0, alpha) == pytest.approx(proximal, rel=1e-11)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5)])
def test_with_equal_steps_it_is_fedavg(momentum, mu):
    """Or FedProx; also where all have fewer than a batch, of which they take as many steps."""
    dataset = classification(dtype=torch.float64)
    work = LocalSGD(lr=0.1, batch_size=8, epochs=None, steps=5, momentum=momentum)
    results = []
    for strategy in (FedNova(mu=mu), FedProx(mu=mu) if mu else FedAvg()):
        runtime = make_runtime(dataset, MLP(hidden=[5]), half=strategy.client_half, work=work)
        results.append(run(runtime, Cohort(), strategy=strategy, schedule=Everyone(8))[0])
    assert distance(*results) < 1e-12


def test_steps_differ_where_epochs_do_not():
    """The control of the test above."""
    results = []
    for strategy in (FedNova(), FedAvg()):
        runtime = make_runtime(classification(), MLP(hidden=[5]), half=strategy.client_half)
        results.append(run(runtime, Cohort(), strategy=strategy, rounds=3)[0])
    assert distance(*results) > 1e-2


@pytest.mark.parametrize("claim", [0.0, -3.0, 0.5])
def test_a_claim_of_no_steps_counts_as_no_reply(claim):
    told = {
        "steps": torch.tensor([claim, 2.0], dtype=torch.float64),
        "lr": torch.full((2,), 0.1, dtype=torch.float64),
        "momentum": torch.zeros(2, dtype=torch.float64),
    }
    replies = Stacked(
        Chunk(
            client_index=np.arange(2),
            arrays={"x": torch.tensor([[1e9], [1.0]], dtype=torch.float64)},
            client_arrays=told,
            metrics={"num-examples": np.ones(2)},
        )
    )
    strategy = federate(FedNova(), everyone(2))
    context = Round(server_round=1, num_clients=2, asked=np.arange(2), params=model(0.0))
    assert strategy.aggregate(context, replies)["x"].item() == 1.0
