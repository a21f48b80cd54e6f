"""pFedMe by hand on (w - b)^2 / 2, and the contraction of its Moreau envelope."""

import numpy as np
import pytest
import torch

from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.strategy import Round
from strategies.pfedme import PFedMe
from tests.strategies._quadratic import ENGINES, trace
from tests.strategies._toy import Stacked, chunk, equal, model


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_two_clients_by_hand(engine):
    """λ = 2, K = 2, inner lr 0.1, lr 0.1, one local step, b = (1, 3), from 0.

    θ: 0.1 b, then 0.1 b - 0.1 (-0.9 b + 0.2 b) = 0.17 b; w = 0.1 * 2 * 0.17 b = 0.034 b.
    """
    strategy = PFedMe(lam=2.0, inner_steps=2, inner_lr=0.1)
    params, losses = trace(strategy, [1, 3], [[1, 1]], engine, steps=1)
    assert params["weight"].item() == pytest.approx(0.068, rel=1e-12)
    theta = np.array([[0.17, 0.51]])
    assert losses == pytest.approx((theta - [1, 3]) ** 2 / 2, rel=1e-12)


@pytest.mark.parametrize("lam", [0.5, 1.0, 4.0])
def test_the_envelope_contracts_by_its_own_curvature(lam):
    """Exact θ = (b + λ w) / (1 + λ), so each step has w - b shrink by 1 - lr λ / (λ + 1)."""
    strategy = PFedMe(lam=lam, inner_steps=60, inner_lr=1 / (1 + lam))
    params, losses = trace(strategy, [3.0], [[1]] * 4, InProcess(), lr=0.2, steps=3)
    shrink = 1 - 0.2 * lam / (lam + 1)
    assert params["weight"].item() == pytest.approx(3 * (1 - shrink**12), rel=1e-12)
    apart = 3 * shrink ** (np.array([3, 6, 9, 12]) - 1) * lam / (lam + 1)  # θ of the last step
    assert losses[:, 0] == pytest.approx(apart**2 / 2, rel=1e-9)


def test_server_lr_is_beta():
    """x = (1 - β) x + β mean(w): β = 0.5 goes half as far, β = 2 twice."""
    moved = {}
    for beta in (0.5, 1.0, 2.0):
        strategy = PFedMe(lam=2.0, inner_steps=2, server_lr=beta)
        params, _ = trace(strategy, [1, 3], [[1, 1]], InProcess(), steps=1)
        moved[beta] = params["weight"].item()
    assert moved[0.5] == pytest.approx(moved[1.0] / 2)
    assert moved[2.0] == pytest.approx(moved[1.0] * 2)


def test_a_client_that_has_not_taken_part_is_scored_with_the_global_model():
    strategy = PFedMe(lam=2.0, inner_steps=2)
    _, losses = trace(strategy, [1, 3], [[1, 0]], InProcess(), steps=1)
    assert losses[0, 1] == pytest.approx((0.034 - 3) ** 2 / 2)


def test_a_poisoned_personal_model_reaches_nobody():
    def next_model(own):
        strategy = PFedMe()
        context = Round(server_round=1, num_clients=2, asked=np.arange(2), params=model(0.0))
        strategy.client_payload(context)
        replies = chunk([0, 1], torch.tensor([[1.0], [3.0]], dtype=torch.float64))
        replies.client_arrays = {"own/x": torch.tensor(own, dtype=torch.float64)[:, None]}
        return strategy.aggregate(context, Stacked(replies))

    assert equal(next_model([0.1, 0.3]), next_model([-1e30, 0.3]))


@pytest.mark.parametrize(
    "settings", [{"lam": 0.0}, {"inner_steps": 0}, {"inner_lr": 0}, {"server_lr": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PFedMe(**settings)
