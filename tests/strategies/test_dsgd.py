"""D-SGD by hand, and how fast its gossip converges."""

import math

import networkx as nx
import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.errors import ConfigError, ResumeError
from fedsim.simulation import Simulation
from fedsim.strategy import Round
from fedsim.topology.mixing import second_eigenvalue
from fedsim.topology.random_regular import RandomRegular
from fedsim.topology.ring import Ring
from fedsim.topology.torus import Torus
from strategies.dsgd import DSGD
from tests.strategies._gossip import idle, on, play

ZERO = torch.zeros(1, dtype=torch.float64)
ALL = np.arange(3)


def plus_one(who, sent):
    return {"x": sent["x"] + 1}, {}


def started(graph, values):
    strategy = on(DSGD(), graph)
    strategy.load_state_dict({"nodes/x": torch.tensor(values, dtype=torch.float64)})
    return strategy


def test_a_path_of_three_by_hand():
    """Halves are (1, 4, 7); W = [[2, 1, 0], [1, 1, 1], [0, 1, 2]] / 3."""
    strategy = started(nx.path_graph(3), [[0.0], [3.0], [6.0]])
    mean = play(strategy, plus_one, ZERO, ALL)
    expected = [[2.0], [4.0], [6.0]]
    np.testing.assert_allclose(strategy.nodes["x"].numpy(), expected, rtol=1e-14)
    assert mean.item() == pytest.approx(4.0, rel=1e-14)
    assert strategy.consensus_distance() == pytest.approx(math.sqrt(8 / 3), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_the_consensus_distance_is_that_of_all_columns(dtype):
    strategy, rng = DSGD(), torch.Generator().manual_seed(0)
    wide = 7.3e3 + torch.randn(40, 3, 9000, generator=rng)  # of several blocks
    strategy.load_state_dict({"nodes/a": wide.to(dtype), "nodes/b": torch.randn(40, 2)})
    flat = torch.cat([t.double().flatten(1) for t in strategy.nodes.values()], 1)
    expected = float((flat - flat.mean(0)).square().sum(1).mean().sqrt())
    assert strategy.consensus_distance() == pytest.approx(expected, rel=1e-6)


def test_evaluated_rounds_report_the_consensus_distance():
    words = ["strategy=dsgd", "topology=ring", "partition.num_clients=5", "participation=full"]
    words += ["rounds=3", "evaluation.every=2", "model=linear", "client.epochs=1", "device=cpu"]
    simulation = Simulation(compose("quickstart", words))
    for _, report in simulation.loop.run(simulation.runtime.initial_params()):
        if report.server_round in (2, 3):
            distance = simulation.strategy.consensus_distance()
            assert report.diagnostics == {"consensus-distance": distance} and distance > 0.01
        else:
            assert report.diagnostics == {}


def test_the_absent_keep_their_models_and_the_mean_stays():
    """With node 1 away, 0 and 2 have no neighbours; with node 2 away, 0 and 1 mix."""
    strategy = started(nx.path_graph(3), [[0.1], [3.3], [6.7]])
    mean = play(strategy, idle, ZERO, np.array([0, 2]))
    np.testing.assert_allclose(strategy.nodes["x"].numpy(), [[0.1], [3.3], [6.7]], rtol=1e-15)
    mean = play(strategy, idle, mean, np.array([0, 1]))
    third = 1 / 3
    expected = [[0.1 + 3.2 * third], [3.3 - 3.2 * third], [6.7]]
    np.testing.assert_allclose(strategy.nodes["x"].numpy(), expected, rtol=1e-14)
    assert strategy.nodes["x"][2].item() == 6.7  # to the bit
    assert mean.item() == pytest.approx(10.1 / 3, rel=1e-14)


@pytest.mark.parametrize("part", [Ring(), Torus(), RandomRegular()], ids=lambda p: type(p).__name__)
def test_gossip_converges_at_the_rate_of_the_second_eigenvalue(part):
    """The rate -ln λ itself is met within 10 % (λ alone would be, by nearly anything)."""
    graph = part.graph(49 if isinstance(part, Torus) else 48, seed=3)
    count = len(graph)
    values = np.random.default_rng(0).normal(size=(count, 5))
    strategy = started(graph, values.tolist())
    x, distances = torch.zeros(5, dtype=torch.float64), []
    rounds = {"Ring": 600, "Torus": 80, "RandomRegular": 120}[type(part).__name__]
    for _ in range(rounds):
        x = play(strategy, idle, x, np.arange(count))
        distances.append(strategy.consensus_distance())
    half = rounds // 2
    measured = math.log(distances[half - 1] / distances[-1]) / (rounds - half)
    expected = -math.log(second_eigenvalue(strategy.weights))
    print(f"{type(part).__name__}: measured rate {measured:.5f}, -ln λ {expected:.5f}")
    assert measured == pytest.approx(expected, rel=0.1)
    np.testing.assert_allclose(x.numpy(), values.mean(0), rtol=0, atol=1e-12)


def test_equal_models_stay_equal_to_the_bit():
    graph = Torus().graph(12)
    strategy = on(DSGD(), graph)
    x = torch.tensor([0.1, -1e-30, 3.3e7], dtype=torch.float32)
    assert torch.equal(play(strategy, idle, x, np.arange(12)), x)
    assert all(torch.equal(row, x) for row in strategy.nodes["x"])


def test_a_state_of_other_nodes_is_refused():
    strategy = started(nx.path_graph(3), [[0.0], [3.0]])
    context = Round(server_round=1, num_clients=3, asked=ALL, params={"x": ZERO})
    with pytest.raises(ResumeError, match="are not 3 of this model"):
        strategy.client_payload(context)


def test_without_a_graph_it_says_what_to_set():
    with pytest.raises(ConfigError, match="DSGD must know who is linked to whom"):
        DSGD().graph  # noqa: B018


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=dsgd"], r"of kind 'star'; set topology=ring \(or torus"),
        (["strategy=hierfavg"], r"of kind 'star'; set topology=hierarchical"),
        (["strategy=fedavg", "topology=ring"], "of kind 'peer'; set topology=star or"),
        (["strategy=fedadam", "topology=ring"], "of kind 'peer'; set topology=star or"),
        (["strategy=dsgd", "topology=hierarchical"], "of kind 'hierarchical'; set topology=ring"),
        (
            ["strategy=dsgd", "topology=torus", "partition.num_clients=13"],
            r"^topology\.rows: 13 clients make no grid",
        ),
    ],
)
def test_a_topology_that_does_not_go_with_the_strategy_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        Simulation(compose("base", words)).check()


def test_fedavg_runs_over_edge_servers_too():
    Simulation(compose("base", ["topology=hierarchical"])).check()
