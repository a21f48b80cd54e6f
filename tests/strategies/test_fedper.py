"""FedPer by hand on a model of two weights, its limits, and that heads never reach the average."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.client import LocalSGD
from fedsim.client.sequential import train_client
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP
from fedsim.strategy import Round
from strategies.fedavg import FedAvg
from strategies.fedper import FedPer
from tests.helpers import Everyone, Some, classification, make_runtime, run
from tests.strategies._quadratic import ENGINES, trace
from tests.strategies._toy import Masks, Stacked, chunk, equal, federate


def product() -> nn.Module:
    """Outputs h a x, of a body a = 1 and a head h = 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    nn.init.constant_(model[1].weight, 2.0)
    return model


@pytest.mark.parametrize("engine", [*ENGINES.values(), Cohort()], ids=[*ENGINES, "rules"])
def test_two_clients_by_hand(engine):
    """F = (h a - b)^2 / 2, b = (1, 3), lr 0.1, one step; only client 1 takes part in round 2.

    Round 1, residual r = 2 - b = (1, -1): a = 1 - 0.2 r = (0.8, 1.2), mean 1;
        h = 2 - 0.1 r = (1.9, 2.1). Round 2, r = 2.1 - 3 = -0.9: a = 1 + 0.1 * 2.1 * 0.9 = 1.189,
        h = 2.1 + 0.1 * 0.9 = 2.19.
    """
    params, losses = trace(FedPer(), [1, 3], [[1, 1], [0, 1]], engine, steps=1, model=product)
    assert params["0.weight"].item() == pytest.approx(1.189, rel=1e-12)
    assert params["1.weight"].item() == 2.0
    outputs = np.array([[1.9, 2.1], [1.9 * 1.189, 2.19 * 1.189]])
    assert losses == pytest.approx((outputs - [1, 3]) ** 2 / 2, rel=1e-12)


DATASET, WORK = classification(), LocalSGD(lr=0.1, batch_size=4, momentum=0.5)


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3)])
def test_without_a_head_it_is_fedavg_to_the_bit(engine):
    strategy = FedPer(head_layers=0)
    runtime = make_runtime(
        DATASET, MLP(hidden=[5]), half=strategy.client_half, work=WORK, holdout=0.3
    )
    got, reports = run(runtime, engine, strategy=strategy, schedule=Some(8, 5), evaluate=True)
    plain = make_runtime(DATASET, MLP(hidden=[5]), work=WORK, holdout=0.3)
    expected, others = run(plain, engine, strategy=FedAvg(), schedule=Some(8, 5), evaluate=True)
    assert equal(got, expected)
    for one, other in zip(reports, others, strict=True):
        assert one.per_client["loss"] == pytest.approx(other.per_client["loss"], rel=1e-5)


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3)])
def test_with_all_layers_personal_it_is_local_training(engine):
    strategy = FedPer(head_layers=2)
    runtime = make_runtime(DATASET, MLP(hidden=[5]), half=strategy.client_half, work=WORK)
    got, _ = run(runtime, engine, strategy=strategy, rounds=3, schedule=Everyone(8))
    assert equal(got, runtime.initial_params())
    plain = make_runtime(DATASET, MLP(hidden=[5]), work=WORK)
    rows = strategy._heads.table.rows(np.arange(8))
    for client in (0, 2, 6):
        alone = plain.initial_params()
        for server_round in (1, 2, 3):
            alone = train_client(
                plain, client=client, server_round=server_round, params=alone, client_arrays={}
            ).params
        for name, tensor in alone.items():
            torch.testing.assert_close(rows[name][client], tensor, rtol=1e-5, atol=1e-6)


def test_a_poisoned_head_never_reaches_the_average():
    def next_model(head):
        strategy = federate(FedPer(), Masks(np.ones((1, 2))))
        params = {"x": torch.zeros(1), "w": torch.full((2, 2), 7.0)}
        context = Round(server_round=1, num_clients=2, asked=np.arange(2), params=params)
        assert torch.equal(
            strategy.client_payload(context)(context.asked)["w"], torch.full((2, 2, 2), 7.0)
        )
        replies = chunk([0, 1], torch.tensor([[1.0], [3.0]]))
        replies.arrays["w"] = torch.tensor(head)[:, None, None].expand(2, 2, 2)
        result = strategy.aggregate(context, Stacked(replies))
        return result, strategy.client_payload(context)(context.asked)["w"][:, 0, 0].tolist()

    good, kept = next_model([1.0, 2.0])
    spoilt, kept_spoilt = next_model([-1e30, 2.0])
    assert equal(good, spoilt)
    assert good["x"].item() == 2.0
    assert torch.equal(good["w"], torch.full((2, 2), 7.0))
    assert kept == [1.0, 2.0]
    assert kept_spoilt == [torch.tensor(-1e30).item(), 2.0]


def test_more_layers_than_there_are_is_refused():
    strategy = FedPer(head_layers=3)
    runtime = make_runtime(DATASET, MLP(hidden=[5]), half=strategy.client_half)
    with pytest.raises(ConfigError, match=r"head_layers: 3, but the model has 2 .*allowed: \[0, 2"):
        run(runtime, InProcess(), strategy=strategy, rounds=1)


def test_a_strategy_that_nobody_told_of_the_layers_says_so():
    context = Round(server_round=1, num_clients=2, asked=np.arange(2), params={})
    with pytest.raises(ConfigError, match="FedPer must know the layers of the model"):
        FedPer().client_payload(context)
