"""FedRep by hand on a model of two weights: head first, then body; neither moves the other."""

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.client.sequential import train_client
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP
from strategies.fedrep import FedRep, HeadThenBody
from tests.helpers import RAGGED, Some, classification, make_runtime, run
from tests.strategies._quadratic import ENGINES, trace
from tests.strategies.test_fedper import product

ALL = {**ENGINES, "rules": Cohort()}


@pytest.mark.parametrize("engine", ALL.values(), ids=list(ALL))
def test_two_clients_by_hand(engine):
    """F = (h a - b)^2 / 2, b = (1, 3), from a = 1, h = 2; lr 0.1; two head steps, one body step.

    Head: h - b shrinks by 1 - 0.1 a^2 = 0.9 each, so h = b + 0.81 (2 - b) = (1.81, 2.19).
    Body: a = 1 - 0.1 h (h - b), client 0: 1 - 0.1 * 1.81 * 0.81, client 1: 1 + 0.1 * 2.19 * 0.81.
    """
    strategy = FedRep(head_share=2 / 3)
    params, losses = trace(strategy, [1, 3], [[1, 1]], engine, steps=3, model=product)
    a = (1 - 0.1 * 1.81 * 0.81 + 1 + 0.1 * 2.19 * 0.81) / 2
    assert params["0.weight"].item() == pytest.approx(a, rel=1e-12)
    assert params["1.weight"].item() == 2.0
    outputs = np.array([[1.81 * a, 2.19 * a]])
    assert losses == pytest.approx((outputs - [1, 3]) ** 2 / 2, rel=1e-12)


@pytest.mark.parametrize("engine", ALL.values(), ids=list(ALL))
def test_momentum_and_weight_decay_do_not_move_what_is_frozen(engine):
    """Client 0 of the test above, b = 1, momentum 0.9, weight decay 0.1; h first, then a alone."""
    strategy = FedRep(head_share=2 / 3)
    settings = {"steps": 4, "model": product, "momentum": 0.9, "weight_decay": 0.1}
    params, losses = trace(strategy, [1], [[1]], engine, **settings)
    a, h, speed = 1.0, 2.0, 0.0
    for _ in range(3):  # 2.67 steps, rounded
        speed = 0.9 * speed + (h * a - 1) * a + 0.1 * h
        h -= 0.1 * speed
    a -= 0.1 * ((h * a - 1) * h + 0.1 * a)  # with a velocity of its own, which starts at zero
    assert params["0.weight"].item() == pytest.approx(a, rel=1e-12)
    assert losses == pytest.approx((h * a - 1) ** 2 / 2, rel=1e-12)


HEAD_STEPS = [(0.8, 5, 4), (0.8, 15, 12), (0.7, 10, 7), (0.29, 100, 29), (0.5, 3, 1)]
HEAD_STEPS += [(0.9, 2, 1), (0.99, 1, 0), (0.99, 10, 9), (0.0, 7, 0)]


@pytest.mark.parametrize(
    ("share", "steps", "expected"),
    HEAD_STEPS,
)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_how_many_steps_are_the_heads(share, steps, expected, dtype):
    runtime = make_runtime(classification(), MLP(hidden=[5]))
    half, own = HeadThenBody(share), {"output.weight": torch.zeros(())}
    number = steps if dtype is None else torch.tensor(float(steps), dtype=dtype)
    heads = 0
    for step in range(steps):
        context = runtime.context(
            params={}, client_arrays=own, server_round=1, steps=number, step=step
        )
        frozen = half.frozen(context)
        assert bool(frozen["output.weight"]) != bool(frozen["hidden1.weight"])
        assert step >= expected or not frozen["output.weight"]  # the head's come first
        heads += int(not frozen["output.weight"])
    assert heads == expected


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3), Cohort(plan="vmap")])
def test_ragged_clients_train_the_head_to_the_end_of_their_own_share(engine):
    """A client's head after a round is what training the head alone, that far, would give."""
    dataset = classification(dtype=torch.float64)
    work = LocalSGD(lr=0.1, batch_size=4, epochs=5)
    strategy = FedRep(head_share=0.8)
    runtime = make_runtime(dataset, MLP(hidden=[5]), half=strategy.client_half, work=work)
    run(runtime, engine, strategy=strategy, rounds=1)
    rows = strategy._heads.table.rows(np.arange(len(RAGGED)))
    alone = make_runtime(dataset, MLP(hidden=[5]), work=LocalSGD(lr=0.1, batch_size=4, epochs=4))
    for name, parameter in alone.model.named_parameters():
        parameter.requires_grad_(name.startswith("output"))
    alone.__post_init__()
    for client in (0, 1, 2, 6):
        expected = train_client(
            alone, client=client, server_round=1, params=alone.initial_params(), client_arrays={}
        ).params
        for name in ("output.weight", "output.bias"):
            torch.testing.assert_close(rows[name][client], expected[name], rtol=1e-10, atol=1e-12)


def test_a_head_share_of_zero_never_trains_the_head():
    dataset = classification()
    strategy = FedRep(head_share=0.0)
    runtime = make_runtime(dataset, MLP(hidden=[5]), half=strategy.client_half)
    got, _ = run(runtime, Cohort(), strategy=strategy, rounds=2, schedule=Some(8, 5))
    rows = strategy._heads.table.rows(np.arange(8), default=runtime.initial_params())
    for name in ("output.weight", "output.bias"):
        assert torch.equal(rows[name], runtime.initial_params()[name].expand_as(rows[name]))
    assert not torch.equal(got["hidden1.weight"], runtime.initial_params()["hidden1.weight"])


@pytest.mark.parametrize("settings", [{"head_share": 1.0}, {"head_layers": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FedRep(**settings)
