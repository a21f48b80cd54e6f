"""A model on bags is the model on each of their places."""

import pytest
import torch
from torch import nn

from fedsim.config import compose
from fedsim.data.bags import Bags
from fedsim.errors import ConfigError
from fedsim.models.bags import OnBags, on_bags
from fedsim.models.dropout import KeyedDropout, install
from fedsim.simulation import Simulation
from tests.helpers import distance


def test_places_are_rows():
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    model, x = OnBags(plain, 3, 5), torch.randn(2, 5, 1, 4, 4)
    assert torch.equal(model(x), torch.stack([plain(bag) for bag in x]))
    assert torch.equal(model(x[0]), plain(x[0]))


def test_dropout_draws_for_every_place():
    model = OnBags(nn.Sequential(KeyedDropout(0.5)), 1, 4)
    install(model, [torch.Generator().manual_seed(0)], [3])
    kept = (model(torch.ones(3, 4, 50)) != 0).float().mean(2)
    assert kept.min() > 0.2 and kept.max() < 0.8


@pytest.mark.parametrize("rest", ["drop", "short"])
def test_batch_statistics_never_see_padding(rest):
    data = Bags(size=7, rest=rest).load()
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    if rest == "drop":  # every row is a sample
        assert on_bags(model, data)(data.train_x).shape == (*data.train_x.shape[:2], 1)
        return
    with pytest.raises(ConfigError, match=r"BatchNorm1d '1'.*GroupNorm"):
        on_bags(model, data)
    assert isinstance(on_bags(nn.Linear(10, 1), data), OnBags)


def test_both_engines_drop_the_same():
    words = ["data=bags", "strategy=aggregate", "model=cnn", "data.source.name=digits"]
    words += ["data.source.image=true", "data.size=3", "data.rest=short", "rounds=1"]
    words += ["partition.num_clients=3", "participation=full", "precision=float64", "device=cpu"]
    words += ["client.epochs=null", "client.steps=2", "model.dropout=0.5"]
    ends = []
    for engine in ("in_process", "cohort"):
        simulation = Simulation(compose("base", [*words, f"engine={engine}"]))
        assert simulation.runtime.drops
        ends.append(list(simulation.loop.run(simulation.runtime.initial_params()))[-1][0])
    assert distance(*ends) < 1e-9
