"""Links: seconds and bytes by hand, through a server, through edge servers, among neighbours.

All figures are sums of a few powers of two, so that seconds are exact.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from flwr.app import Message

from fedsim import network as network_module
from fedsim.config import compose
from fedsim.devices.base import Fleet
from fedsim.engines.flwr_compat import client_error
from fedsim.engines.in_process import InProcessGrid
from fedsim.errors import ConfigError, ResumeError
from fedsim.lifecycle import Run
from fedsim.network import Network
from fedsim.results import RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.topology.base import TopologyPart
from fedsim.topology.hierarchical import Hierarchical
from fedsim.topology.ring import Ring
from fedsim.topology.star import Star
from fedsim.topology.traffic import AmongNeighbours, ThroughEdges, ThroughServer
from tests.helpers import whole_and_resumed

FLEET = Fleet(
    flops_N=np.array([2.0**20, 2.0**16, 2.0**18, 2.0**24]),
    down_N=np.array([2.0**10, 2.0**14, 2.0**12, 2.0**11]),
    up_N=np.array([2.0**8, 2.0**13, 2.0**7, 2.0**9]),
)
ALL = np.arange(4)
WORDS = ["device=cpu", "evaluation.central=false", "partition.num_clients=4", "partition=iid",
         "rounds=3", "model=linear", "participation=full", "client.epochs=1", "devices=equal",
         "partition.holdout=0.2", "evaluation.clients=cohort", "evaluation.every=3"]  # fmt: skip
ENGINES = pytest.mark.parametrize("engine", ["cohort", "in_process"])


def network(part: TopologyPart) -> Network:
    return Network(part, 4, lambda: part.graph(4))


def run(*words: str) -> tuple[Simulation, list[RoundReport]]:
    simulation = Simulation(compose("quickstart", [*WORDS, *words]))
    assert simulation.meter is not None
    simulation.meter.fleet = FLEET
    return simulation, [r for _, r in simulation.loop.run(simulation.runtime.initial_params())]


def carried(simulation: Simulation) -> dict[tuple[object, object], float]:
    assert simulation.meter is not None
    graph = simulation.meter.network.describe()
    assert graph is not None
    return {(e["a"], e["b"]): e["bytes"] for e in graph["edges"]}  # type: ignore[misc]


def test_the_slower_of_device_and_link_carries_and_lost_messages_are_sent_again() -> None:
    star = network(Star(bandwidth=2.0**9, latency_s=0.25, loss=0.5))
    down, up = np.array([2.0**10, 2.0**10]), np.array([2.0**7, 0.0])
    way = star.passage(ThroughServer(), FLEET, np.array([0, 3]), down, up, count=True)
    assert way.before_K.tolist() == [2 * (0.25 + 1024 / 512), 2 * (0.25 + 1024 / 512)]
    assert way.after_K.tolist() == [2 * (0.25 + 128 / 256), 0.0]  # client 3 has not replied
    assert star.bytes_M is not None
    assert star.bytes_M.tolist() == [2 * (1024 + 128), 0.0, 0.0, 2 * 1024]


def test_through_a_server_both_links_are_crossed_by_every_message() -> None:
    part = Hierarchical(edge_servers=2, bandwidth=2.0**8, latency_s=1.0,
                        cloud_bandwidth=2.0**7, cloud_latency_s=2.0, cloud_loss=0.75)  # fmt: skip
    tree = network(part)
    size = np.full(4, 512.0)
    way = tree.passage(ThroughServer(), FLEET, ALL, size, size, count=True)
    trunk = 4 * (2 + 512 / 128)
    assert way.before_K.tolist() == [trunk + 1 + 512 / 256] * 4
    assert way.after_K.tolist() == [
        trunk + 1 + 512 / min(256, own) for own in (256, 8192, 128, 512)
    ]
    graph = tree.describe()
    assert graph is not None
    assert graph["nodes"][:2] == [
        {"id": "server", "role": "server"},
        {"id": "edge-0", "role": "edge"},
    ]
    assert graph["edges"][0] == {
        "a": "server", "b": "edge-0", "bytes": 4 * 2 * 1024.0,
        "bandwidth": 128.0, "latency": 2.0, "loss": 0.75,
    }  # fmt: skip
    assert [e["bytes"] for e in graph["edges"]] == [8192.0] * 2 + [1024.0] * 4


@ENGINES
def test_two_tiers_of_period_two_by_hand(engine: str) -> None:
    """The cloud has its turn in round 2 alone: one model up and one down, for each of two edges."""
    links = ["topology.bandwidth=512", "topology.latency_s=0.5", "topology.cloud_bandwidth=1024",
             "topology.cloud_latency_s=0.25", "topology.cloud_loss=0.5"]  # fmt: skip
    tiers = ["topology=hierarchical", "topology.edge_servers=2", *links]
    given = ["strategy=hierfavg", "strategy.cloud_period=2", f"engine={engine}"]
    simulation, reports = run(*tiers, *given)
    trained = [len(simulation.runtime.samples(k)) for k in range(4)]
    sizes = [len(simulation.partition.indices(k)) for k in range(4)]
    now, device = 0.0, np.zeros(4)
    # The record of a 64-10 linear model: 2600 bytes of weights in NumPy's and Flower's wrappings.
    assert simulation.meter is not None and simulation.meter.network.bytes_M is not None
    model = simulation.meter.network.bytes_M[0] / 2 / 2
    assert 2600 < model < 3100
    for report in reports:
        for exchange, told in report.footprint.items():
            down, up = told["bytes-down"], told["bytes-up"]
            device += np.array(down) + np.array(up)
            each = [
                (2 * 2 * 640 * n if exchange == "train" else 2 * 640 * (s - n))
                for n, s in zip(trained, sizes, strict=True)
            ]
            slowest = max(
                (0.5 + down[0] / 512) + each[0] / 2**20 + (0.5 + up[0] / 256),
                (0.5 + down[1] / 512) + each[1] / 2**16 + (0.5 + up[1] / 512),
                (0.5 + down[2] / 512) + each[2] / 2**18 + (0.5 + up[2] / 128),
                (0.5 + down[3] / 512) + each[3] / 2**24 + (0.5 + up[3] / 512),
            )
            if exchange == "train" and report.server_round == 2:
                slowest += 2 * (0.25 + model / 1024) + 2 * (0.25 + model / 1024)
            now += slowest
        assert report.simulated_seconds == now
    assert list(reports[2].footprint) == ["train", "evaluate"]
    bytes_of = carried(simulation)
    assert bytes_of["server", "edge-0"] == bytes_of["server", "edge-1"] == 2 * 2 * model
    on_links = [bytes_of[f"edge-{k // 2}", k] for k in range(4)]
    assert on_links == device.tolist()


def test_the_cloud_answers_once_all_edge_servers_have_sent() -> None:
    part = Hierarchical(edge_servers=2)
    tree = part.graph(4)
    tree.edges["server", "edge-0"].update(bandwidth=64.0)
    tree.edges["server", "edge-1"].update(bandwidth=128.0, latency=1.0)
    model = {"w": None}
    way = Network(part, 4, lambda: tree).passage(
        ThroughEdges(cloud=model),  # type: ignore[arg-type]
        FLEET, ALL, np.zeros(4), np.full(4, 1.0), 256,
    )  # fmt: skip
    slow, fast = 256 / 64, 1 + 256 / 128
    tails = np.array([slow + slow, slow + slow, fast + slow, fast + slow])
    assert way.after_K.tolist() == (1 / FLEET.up_N + tails).tolist()


@ENGINES
@pytest.mark.parametrize("strategy", ["dsgd", "gradient_tracking"])
def test_a_ring_of_four_by_hand(strategy: str, engine: str) -> None:
    """Each node takes in two copies, computes, and sends two, which travel side by side."""
    links = ["topology.bandwidth=512", "topology.latency_s=0.5", "topology.loss=0.5"]
    simulation, reports = run("topology=ring", *links, f"strategy={strategy}", f"engine={engine}")
    trained = [len(simulation.runtime.samples(k)) for k in range(4)]
    sizes = [len(simulation.partition.indices(k)) for k in range(4)]
    copy = reports[0].footprint["train"]["bytes-up"][0] / 2
    assert 2600 < copy < 3100 if strategy == "dsgd" else 5200 < copy < 6200
    now, rates = 0.0, [2.0**20, 2.0**16, 2.0**18, 2.0**24]
    for report in reports:
        train = report.footprint["train"]
        assert train["bytes-down"] == train["bytes-up"] == [2 * copy] * 4
        assert train["replied"] == [1.0] * 4
        work = train["flops"]
        if strategy == "dsgd":
            assert work == [2 * 2 * 640 * n for n in trained]
        now += max(
            2 * copy / 1024 + work[0] / 2**20 + 4 * copy / 256 + 1.0,
            2 * copy / 16384 + work[1] / 2**16 + 4 * copy / 512 + 1.0,
            2 * copy / 4096 + work[2] / 2**18 + 4 * copy / 128 + 1.0,
            2 * copy / 2048 + work[3] / 2**24 + 4 * copy / 512 + 1.0,
        )
        if "evaluate" in report.footprint:  # nodes score their own models, which moves nothing
            told = report.footprint["evaluate"]
            assert told["bytes-down"] == told["bytes-up"] == [0.0] * 4
            now += max(2 * 640 * (s - n) / f for s, n, f in zip(sizes, trained, rates, strict=True))
        assert report.simulated_seconds == now
    assert carried(simulation) == {
        edge: 3 * 2 * 2 * copy for edge in [(0, 1), (0, 3), (1, 2), (2, 3)]
    }


def test_nodes_send_to_neighbours_who_were_asked_and_a_silent_one_receives_alone() -> None:
    ring = network(Ring())
    asked, sends = np.array([0, 1, 2]), np.array([10.0, 10.0, 0.0])
    way = ring.passage(
        AmongNeighbours(copy={}), FLEET, asked, np.full(3, 9.0), sends, 256, count=True
    )
    assert way.up_K.tolist() == [256, 512, 0]  # node 3 sleeps, node 2 is silent
    assert way.down_K.tolist() == [256, 256, 256]
    assert way.before_K.tolist() == [256 / 1024, 256 / 16384, 256 / 4096]
    assert way.after_K.tolist() == [256 / 256, 512 / 8192, 0]
    assert ring.bytes_M is not None
    assert dict(zip(ring.graph.edges, ring.bytes_M.tolist(), strict=True)) == {
        (0, 1): 512.0, (0, 3): 0.0, (1, 2): 256.0, (2, 3): 0.0
    }  # fmt: skip


def test_a_node_that_fails_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = InProcessGrid.run_one

    def broken(self: InProcessGrid, message: Message) -> Message:
        if self.client_index(message.metadata.dst_node_id) == 2:  # by far the slowest
            return client_error(message, "gone")
        return plain(self, message)

    monkeypatch.setattr(InProcessGrid, "run_one", broken)
    _, reports = run("topology=ring", "strategy=dsgd", "engine=in_process", "rounds=1",
                     "evaluation.clients=none")  # fmt: skip
    told = reports[0].footprint["train"]
    assert told["replied"] == [1.0, 1.0, 0.0, 1.0]
    assert told["bytes-up"][2] == 0 < told["bytes-down"][2]
    assert reports[0].simulated_seconds == max(told["seconds"][k] for k in (0, 1, 3))


@pytest.mark.parametrize("part", [Star(), Hierarchical(edge_servers=2)])
def test_links_without_limits_change_nothing(part: TopologyPart) -> None:
    size = np.array([1000.0, 77.0, 3.0, 1e6])
    way = network(part).passage(ThroughServer(), FLEET, ALL, size, size + 1)
    assert way.before_K.tolist() == (size / FLEET.down_N).tolist()
    assert way.after_K.tolist() == ((size + 1) / FLEET.up_N).tolist()


def test_asynchronous_clients_are_as_long_on_their_way() -> None:
    words = ["strategy=fedbuff", "strategy.concurrency=4", "strategy.buffer=4", "rounds=1"]
    slow = ["topology=hierarchical", "topology.latency_s=8", "topology.cloud_latency_s=16"]
    _, (plain,) = run(*words)
    _, (late,) = run(*words, *slow)
    assert late.simulated_seconds == max(late.footprint["train"]["seconds"])
    assert late.simulated_seconds == plain.simulated_seconds + 48  # type: ignore[operator]


def test_a_resumed_run_has_carried_the_same(tmp_path: Path) -> None:
    """Checkpoints come every second round, and the run is cut after the third."""
    own = ["rounds=5", "checkpoint.every=2", f"output.root={tmp_path}", "topology.latency_s=0.1"]
    tiers = ["topology=hierarchical", "strategy=hierfavg"]
    config = compose("quickstart", [*WORDS, *own, *tiers])
    whole, resumed = whole_and_resumed(config, cut_after=3)
    files = [(f.path / "graph.json").read_text() for f in (whole, resumed)]
    assert files[0] == files[1]
    graph = json.loads(files[0])
    assert set(graph) == {"nodes", "edges"}
    assert all(edge["bytes"] > 0 and edge["bandwidth"] is None for edge in graph["edges"][-4:])
    lines = [[r["simulated_seconds"] for r in f.rounds()] for f in (whole, resumed)]
    assert lines[0] == lines[1]


def test_a_graph_of_too_many_links_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network_module, "MOST_LINKS", 3)
    words = ["topology=ring", "strategy=dsgd", "rounds=1", f"output.root={tmp_path}"]
    config = compose("quickstart", [*WORDS, *words])
    folder = RunFolder.create(config)
    with caplog.at_level(logging.WARNING):
        list(Run(simulation=Simulation(config), folder=folder).start())
    assert not (folder.path / "graph.json").exists()
    assert "no graph.json: the topology has 4 links (most: 3)" in caplog.text


def test_what_a_checkpoint_does_not_hold_is_not_made_up() -> None:
    ring = network(Ring())
    with pytest.raises(ResumeError, match="3 links have carried, but the topology has 4"):
        ring.restore(np.zeros(3))
    ring.restore(None)
    assert ring.describe() is None
    assert "earlier rounds" in ring.why_not


def test_peers_whose_strategy_says_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"override FedsimStrategy\.traffic"):
        network(Ring()).passage(ThroughServer(), FLEET, ALL, np.ones(4), np.ones(4))


def test_a_star_of_many_clients_is_never_built() -> None:
    def never() -> nx.Graph:
        raise AssertionError

    star = Network(Star(latency_s=1.0), 10**6, never)
    alike = np.broadcast_to(1.0, 10**6)
    fleet = Fleet(flops_N=alike, down_N=alike, up_N=alike)
    one = np.array([999_999])
    way = star.passage(ThroughServer(), fleet, one, np.ones(1), np.ones(1), count=True)
    assert [way.before_K.tolist(), way.after_K.tolist()] == [[2.0], [2.0]]
    assert star.describe() is None
