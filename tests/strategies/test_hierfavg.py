"""HierFAVG: FedAvg to the bit with period 1; by hand with period 2."""

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.errors import ResumeError
from fedsim.simulation import Simulation
from fedsim.strategy import Round
from strategies.fedavg import FedAvg
from strategies.hierfavg import HierFAVG
from tests.strategies._toy import Stacked, chunk, equal, everyone, federate, model

WORDS = ["rounds=5", "partition.num_clients=20", "participation.clients_per_round=7", "seed=3",
         "model.hidden=[8]", "device=cpu"]  # fmt: skip
TREE = ["strategy=hierfavg", "strategy.cloud_period=1", "topology=hierarchical",
        "topology.edge_servers=12", "topology.assignment=drawn"]  # fmt: skip
"""Seven participants under twelve edge servers: most have nobody in a round, some nobody at all."""


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_with_period_1_it_is_fedavg_on_a_star_bit_for_bit(engine):
    ends = []
    for more in (["strategy=fedavg"], TREE):
        simulation = Simulation(compose("quickstart", [*WORDS, *more, f"engine={engine}"]))
        start = simulation.runtime.initial_params()
        *_, (end, _) = simulation.loop.run(start)
        assert not equal(start, end)
        ends.append(end)
    assert equal(*ends)
    edge_N = simulation.strategy.edge_N
    assert len(set(edge_N.tolist())) < 12


def context(server_round, params, count=4):
    return Round(
        server_round=server_round, num_clients=count, asked=np.arange(count), params=params
    )


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def tree(**fields):
    """Clients 0..3 under edge servers 0..3; of eight clients, two each."""
    return federate(HierFAVG(**fields), everyone(8))


def test_two_rounds_by_hand():
    """Edges of clients (0, 1), (2, 3), (4, 5), (6, 7); only the first two have replies.

    Round 1 from x = 1: edge 0 averages 2 and 5 with weights 1 and 3: 4.25; edge 1 has 3 alone.
    Round 2: edge 0 averages 8 (weight 2); edge 1 has none. Cloud: (6 * 8 + 1 * 3) / 7.
    """
    strategy, x = tree(), model(1.0)
    first = strategy.aggregate(
        context(1, x, 8), Stacked(chunk([0, 1, 2], rows(2.0, 5.0, 3.0), [1, 3, 1]))
    )
    assert equal(first, x)
    sent = strategy.client_payload(context(2, x, 8))(np.array([1, 3, 7]))
    np.testing.assert_allclose(sent["x"].numpy().ravel(), [4.25, 3.0, 1.0], rtol=1e-15)
    resumed = tree()
    resumed.load_state_dict(strategy.state_dict())
    for one in (strategy, resumed):
        last = one.aggregate(context(2, x, 8), Stacked(chunk([1], rows(8.0), 2)))
        assert last["x"].item() == pytest.approx(51 / 7, rel=1e-14)
        assert one.state_dict() == {}
        assert one.client_payload(context(3, last, 8))(np.array([5]))["x"].item() == last["x"]


def test_the_mean_of_means_is_the_mean():
    """A cloud round that begins with equal edges, the long way: FedAvg up to rounding."""
    rng = np.random.default_rng(0)
    replies = chunk(range(8), rows(*rng.normal(size=8)), rng.integers(1, 50, 8))
    x = model(0.3)
    long = tree(cloud_period=2).aggregate(context(2, x, 8), Stacked(replies))
    star = FedAvg().aggregate(context(2, x, 8), Stacked(replies))
    assert long["x"].item() == pytest.approx(star["x"].item(), rel=1e-13)


def test_half_a_state_is_refused():
    strategy = tree()
    strategy.aggregate(context(1, model(1.0), 8), Stacked(chunk([0], rows(2.0))))
    state = strategy.state_dict()
    del state["edge-weight"]
    with pytest.raises(ResumeError, match="is not HierFAVG's"):
        tree().load_state_dict(state)
