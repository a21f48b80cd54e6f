"""Ditto by hand on (w - b)^2 / 2, its limits, and that v_k never reaches the global model."""

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.client.sequential import train_client
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError, ResumeError
from fedsim.models.mlp import MLP
from fedsim.strategy import Round
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from tests.helpers import Some, classification, distance, make_runtime, run
from tests.strategies._quadratic import ENGINES, trace
from tests.strategies._toy import Stacked, chunk, equal, model


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_two_clients_by_hand(engine):
    """b = (1, 3), lr 0.1, two steps, λ = 0.5; only client 1 takes part in round 2.

    Round 1 from 0: y = 0.19 b; v: 0.1 b, then 0.1 b - 0.1 (-0.9 b + 0.05 b) = 0.185 b; x = 0.38.
    Round 2, client 1: y: 0.38 -> 0.642 -> 0.8778 = x. v: 0.555
        -> 0.555 - 0.1 (0.555 - 3 + 0.5 (0.555 - 0.38)) = 0.79075
        -> 0.79075 - 0.1 (0.79075 - 3 + 0.5 (0.79075 - 0.38)) = 0.9911375
    """
    params, losses = trace(Ditto(lam=0.5), [1, 3], [[1, 1], [0, 1]], engine)
    assert params["weight"].item() == pytest.approx(0.8778, rel=1e-12)
    v = np.array([[0.185, 0.555], [0.185, 0.9911375]])
    assert losses == pytest.approx((v - [1, 3]) ** 2 / 2, rel=1e-12)


def test_a_client_that_has_not_taken_part_has_the_initial_model():
    _, losses = trace(Ditto(lam=0.5), [1, 3], [[1, 0], [1, 0]], InProcess())
    assert losses[:, 1] == pytest.approx([4.5, 4.5])


def test_momentum_moves_the_global_model_alone():
    """y: 0.1 b, then a velocity of -0.9 b + 0.9 * -b: 0.1 b + 0.18 b. v as without."""
    params, losses = trace(Ditto(lam=0.5), [1], [[1]], InProcess(), momentum=0.9)
    assert params["weight"].item() == pytest.approx(0.28, rel=1e-12)
    assert losses == pytest.approx((0.185 - 1) ** 2 / 2, rel=1e-12)


WORK = LocalSGD(lr=0.1, batch_size=4)


def test_the_global_model_is_that_of_fedavg():
    dataset, settings = classification(), {"rounds": 5, "schedule": Some(8, 5)}
    strategy = Ditto(lam=0.7)
    runtime = make_runtime(dataset, MLP(hidden=[5]), half=strategy.client_half, work=WORK)
    got, _ = run(runtime, InProcess(), strategy=strategy, **settings)
    plain = make_runtime(dataset, MLP(hidden=[5]), work=WORK)
    expected, _ = run(plain, InProcess(), strategy=FedAvg(weighting="uniform"), **settings)
    assert distance(got, expected) < 1e-6


def test_without_the_pull_personal_models_train_locally():
    dataset = classification(dtype=torch.float64)
    strategy = Ditto(lam=0.0)
    runtime = make_runtime(dataset, MLP(hidden=[5]), half=strategy.client_half, work=WORK)
    schedule = Some(8, 5)
    run(runtime, InProcess(), strategy=strategy, rounds=4, schedule=schedule)
    plain = make_runtime(dataset, MLP(hidden=[5]), work=WORK)
    kept = strategy._models.rows(np.arange(8), default=strategy._initial)
    for client in (0, 2, 6):
        alone, taken = plain.initial_params(), 0
        for server_round in range(1, 5):
            if client in schedule.select(server_round):
                alone = train_client(
                    plain, client=client, server_round=server_round, params=alone, client_arrays={}
                ).params
                taken += 1
        assert taken
        for name, tensor in alone.items():
            torch.testing.assert_close(kept[f"own/{name}"][client], tensor, rtol=1e-12, atol=1e-13)


def test_a_strong_pull_keeps_personal_models_at_the_global_one():
    """v_1 = v_0 - 0.1 (g + 10 (v_0 - x)) = x - 0.1 g, from any v_0."""
    params, losses = trace(
        Ditto(lam=10.0), [1, 3], [[1, 1], [1, 1], [1, 1]], InProcess(), lr=0.1, steps=1
    )
    x = 2 * (1 - 0.9**2)  # after two rounds; the third one's v starts from it
    v_before = np.array([x_after_one(b) for b in (1, 3)])
    v = x - 0.1 * (v_before - [1, 3])
    assert losses[2] == pytest.approx((v - [1, 3]) ** 2 / 2, rel=1e-9)
    assert params["weight"].item() == pytest.approx(2 * (1 - 0.9**3))


def x_after_one(b):
    """v after round 2 at λ = 10: x after one round, less one step at the v before (0.1 b)."""
    return 2 * (1 - 0.9) - 0.1 * (0.1 * b - b)


def test_a_poisoned_personal_model_reaches_nobody():
    def next_model(own):
        strategy = Ditto()
        context = Round(server_round=1, num_clients=2, asked=np.arange(2), params=model(0.0))
        strategy.client_payload(context)
        replies = chunk([0, 1], torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        replies.client_arrays = {"own/x": torch.tensor(own, dtype=torch.float64)[:, None]}
        result = strategy.aggregate(context, Stacked(replies))
        return result, strategy.client_payload(context)(context.asked)["own/x"].flatten().tolist()

    good, kept = next_model([0.1, 0.3])
    spoilt, kept_spoilt = next_model([1e30, 0.3])
    assert equal(good, spoilt)
    assert (kept, kept_spoilt) == ([0.1, 0.3], [1e30, 0.3])


@pytest.mark.parametrize("settings", [{"lam": -0.1}, {"weighting": "size"}, {"server_lr": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Ditto(**settings)


def test_the_state_of_another_model_is_refused():
    strategy = Ditto()
    context = Round(server_round=1, num_clients=2, asked=np.arange(2), params=model(0.0))
    strategy.client_payload(context)
    other = Round(server_round=2, num_clients=2, asked=np.arange(2), params=model(0.0, 1.0))
    fresh = Ditto()
    fresh.load_state_dict(strategy.state_dict())
    fresh._models.fit({"own/x": torch.zeros(1, dtype=torch.float64)}, 2)
    fresh._initial = {"own/x": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(ResumeError, match="another model"):
        fresh.client_payload(other)
