"""Least squares over clients: the central solution, whoever holds what, on both engines."""

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from tests.helpers import distance

WORDS = ["strategy=least_squares", "model=linear", "rounds=1", "precision=float64", "device=cpu"]
WORDS += ["participation=full", "client.batch_size=6"]


def solve(*words):
    simulation = Simulation(compose("base", [*WORDS, *words]))
    params = list(simulation.loop.run(simulation.runtime.initial_params()))[-1][0]
    return params, simulation


def central(data, rho):
    """The solution over all bags as one, by a stacked least-squares problem instead of sums."""
    rows, targets = [], []
    for x, y in zip(data.train_x.double().numpy(), data.train_y.double().numpy(), strict=True):
        size = int(y[-1])
        one = np.hstack([x[:size].reshape(size, -1), np.ones((size, 1))])
        center = one.mean(0)
        rows += [center[None], np.sqrt(rho / size) * (one - center)]
        targets += [y[None, :-1], np.zeros((size, len(y) - 1))]
    return np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0]


@pytest.mark.parametrize("engine", ["in_process", "cohort"])
@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0, 3.0])
def test_the_federation_finds_the_central_solution(rho, engine):
    words = ["data=bags", "data.size=5", "data.rest=short", f"strategy.rho={rho}"]
    words += ["partition=quantity", "partition.num_clients=6", f"engine={engine}"]
    params, simulation = solve(*words)
    theta = central(simulation.dataset, rho)
    found = torch.cat([params["model.output.weight"].T, params["model.output.bias"][None]])
    assert np.abs(found.numpy() - theta).max() < 1e-8 * max(1, np.abs(theta).max())


def test_without_bags_it_is_ordinary_least_squares():
    params, simulation = solve("data=diabetes", "partition.num_clients=4", "strategy.rho=0.3")
    data = simulation.dataset
    x = np.hstack([data.train_x.numpy(), np.ones((len(data.train_x), 1))])
    theta = np.linalg.lstsq(x, data.train_y.numpy(), rcond=None)[0]
    found = torch.cat([params["output.weight"].T, params["output.bias"][None]]).numpy()
    assert np.abs(found - theta).max() < 1e-8
    ridge, _ = solve("data=diabetes", "partition.num_clients=4", "strategy.ridge=0.1")
    gram = x.T @ x / len(x) + 0.1 * np.diag([1.0] * 10 + [0])
    theta = np.linalg.solve(gram, x.T @ data.train_y.numpy() / len(x))
    found = torch.cat([ridge["output.weight"].T, ridge["output.bias"][None]]).numpy()
    assert np.abs(found - theta).max() < 1e-8


def test_sgd_on_the_loss_stays_there():
    """The interpolating loss that clients descend is the one that is solved here."""
    words = ["data=bags", "data.size=3", "data.rest=short", "partition.num_clients=1"]
    words += ["client.batch_size=999"]
    exact, _ = solve(*words, "strategy.rho=0.5")
    for rho, stays in ((0.5, True), (0.4, False)):
        more = ["strategy=aggregate", f"strategy.rho={rho}", "client.lr=0.1", "client.epochs=5"]
        simulation = Simulation(compose("base", [*WORDS[1:], *words, *more]))
        moved = distance(list(simulation.loop.run(exact))[-1][0], exact)
        assert (moved < 1e-9) == stays
        assert stays or moved > 1e-4


def test_more_rounds_and_epochs_change_nothing():
    words = ["data=bags", "partition.num_clients=3"]
    once, _ = solve(*words)
    again, _ = solve(*words, "rounds=3", "client.epochs=2")
    assert distance(again, once) < 1e-9


def test_other_models_are_refused():
    simulation = Simulation(
        compose("base", [WORDS[0], "participation=full", "data=bags", "partition.num_clients=3"])
    )
    with pytest.raises(ConfigError, match="model=linear"):
        list(simulation.loop.run(simulation.runtime.initial_params()))
