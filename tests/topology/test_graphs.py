"""Each topology's graph: its links, what is drawn and when it is refused."""

import math

import networkx as nx
import numpy as np
import pytest

from fedsim.errors import ConfigError, DataError
from fedsim.topology.base import SERVER, edge_of
from fedsim.topology.erdos_renyi import ErdosRenyi
from fedsim.topology.graphml import GraphML
from fedsim.topology.hierarchical import Hierarchical
from fedsim.topology.random_regular import RandomRegular
from fedsim.topology.ring import Ring
from fedsim.topology.small_world import SmallWorld
from fedsim.topology.star import Star
from fedsim.topology.torus import Torus

PEERS = [Ring(), Torus(), RandomRegular(), ErdosRenyi(), SmallWorld()]
DRAWN = PEERS[2:]


@pytest.mark.parametrize("part", [*PEERS, Star(), Hierarchical()])
def test_all_clients_are_connected_by_links_with_attributes(part):
    graph = part.graph(30, seed=1)
    assert nx.is_connected(graph)
    assert [k for k, role in graph.nodes(data="role") if role == "client"] == list(range(30))
    assert nx.number_of_selfloops(graph) == 0
    for *_, values in graph.edges(data=True):
        assert values == {"bandwidth": math.inf, "latency": 0.0, "loss": 0.0}


def test_links_are_what_the_scenario_says():
    graph = Torus(bandwidth=1e6, latency_s=0.02, loss=0.1).graph(12)
    assert graph.edges[0, 1] == {"bandwidth": 1e6, "latency": 0.02, "loss": 0.1}
    tree = Hierarchical(edge_servers=2, bandwidth=1e6, cloud_latency_s=0.5).graph(4)
    assert tree.edges["edge-0", 0] == {"bandwidth": 1e6, "latency": 0.0, "loss": 0.0}
    assert tree.edges["edge-0", SERVER] == {"bandwidth": math.inf, "latency": 0.5, "loss": 0.0}


def test_shapes_by_hand():
    assert sorted(Ring().graph(4).edges) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert sorted(Torus().graph(6).edges) == [
        *((0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (3, 5), (4, 5)),
    ]  # 2 x 3: rows of three closed, columns of two
    assert {d for _, d in Torus(rows=5).graph(20).degree} == {4}
    assert {d for _, d in RandomRegular(degree=3).graph(20).degree} == {3}
    assert SmallWorld(neighbours=4, rewired=0).graph(10).number_of_edges() == 20


@pytest.mark.parametrize("part", PEERS)
def test_one_client_has_no_neighbours(part):
    assert len(part.graph(1).edges) == 0


@pytest.mark.parametrize("part", DRAWN)
def test_drawn_graphs_follow_from_the_seed_alone(part):
    edges = [sorted(part.graph(30, seed=seed).edges) for seed in (1, 1, 2)]
    assert edges[0] == edges[1]
    assert edges[0] != edges[2]


@pytest.mark.parametrize(
    ("part", "clients", "words"),
    [
        (Torus(), 13, "13 clients make no grid .* set partition.num_clients=9"),
        (Torus(rows=4), 30, "make no grid of 4 rows"),
        (RandomRegular(degree=3), 15, "15 clients cannot have 3 neighbours"),
        (RandomRegular(degree=4), 4, "topology.degree=2"),
        (SmallWorld(neighbours=3), 9, "must be even"),
        (ErdosRenyi(probability=0.01), 50, "none of 100 graphs of 50 clients was connected"),
    ],
)
def test_graphs_that_do_not_exist_are_refused(part, clients, words):
    with pytest.raises(ConfigError, match=words):
        part.graph(clients)


def test_devices_share_edge_servers_in_even_groups_or_as_drawn():
    tree = Hierarchical(edge_servers=3).graph(7)
    assert edge_of(tree, 7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert [nx.shortest_path_length(tree, SERVER, k) for k in range(7)] == [2] * 7
    drawn = [
        edge_of(Hierarchical(edge_servers=3, assignment="drawn").graph(40, s), 40)
        for s in (0, 0, 1)
    ]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert np.bincount(drawn[0], minlength=3).min() > 0
    with pytest.raises(ConfigError, match="linked to 0 edge servers"):
        edge_of(Star().graph(3), 3)


def written(tmp_path, graph):
    file = tmp_path / "graph.graphml"
    nx.write_graphml_xml(graph, file)
    return str(file)


def test_a_file_gives_links_and_their_attributes(tmp_path):
    graph = nx.DiGraph()
    graph.add_edge("b", "a", bandwidth=5e5, latency=0.1)
    graph.add_edge("a", "b")
    graph.add_edge("c", "a", loss=0.5)
    graph.add_edge("c", "c")
    got = GraphML(path=written(tmp_path, graph), latency_s=0.3).graph(3)
    assert sorted(got.edges) == [(0, 1), (1, 2)]  # b, a, c in the file's order
    assert got.edges[1, 2] == {"bandwidth": math.inf, "latency": 0.3, "loss": 0.5}


def test_numbered_nodes_are_the_clients_of_that_index(tmp_path):
    path = written(tmp_path, nx.Graph([("2", "0"), ("0", "1")]))
    assert sorted(GraphML(path=path).graph(3).edges) == [(0, 1), (0, 2)]


GOOD = b"""<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">
<node id="x"/><node id="y"/><edge source="x" target="y"/></graph></graphml>"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD[:-10], "is no GraphML file"),
        (b"", "is no GraphML file"),
        (b"\x00\xff" * 20, "is no GraphML file"),
        (b"<svg/>", "is no GraphML file"),
        (b'<!DOCTYPE g [<!ENTITY a "aa">]>' + GOOD, "declares a document type or entities"),
        (
            ('<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE g>' + GOOD.decode()).encode(
                "utf-16"
            ),
            "declares a document type or entities",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, words):
    file = tmp_path / "graph.graphml"
    file.write_bytes(text)
    with pytest.raises(DataError, match=words):
        GraphML(path=str(file)).graph(2)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        GraphML(path=str(tmp_path / "none.graphml")).graph(2)
    path = written(tmp_path, nx.path_graph(5))
    with pytest.raises(ConfigError, match="has 5 nodes, but there are 4 clients"):
        GraphML(path=path).graph(4)
    path = written(tmp_path, nx.Graph([(0, 1), (2, 3), (3, 4)]))
    with pytest.raises(ConfigError, match="falls into 2 parts, of 3, 2 nodes"):
        GraphML(path=path).graph(5)
    for name, value in (("loss", 1.5), ("latency", math.inf), ("bandwidth", True)):
        graph = nx.path_graph(2)
        graph.edges[0, 1][name] = value
        with pytest.raises(DataError, match=f"edge 0 - 1 has {name}={value}"):
            GraphML(path=written(tmp_path, graph)).graph(2)


def test_a_file_without_a_name_space_is_read(tmp_path):
    file = tmp_path / "graph.graphml"
    file.write_bytes(GOOD.replace(b' xmlns="http://graphml.graphdrawing.org/xmlns"', b""))
    assert list(GraphML(path=str(file)).graph(2).edges) == [(0, 1)]


def test_graphs_that_cannot_be_connected_say_what_to_type():
    with pytest.raises(ConfigError, match=r"set topology\.degree=2 or more"):
        RandomRegular(degree=1).graph(6)
    with pytest.raises(ConfigError, match=r"set topology\.probability=0\.3 or more"):
        ErdosRenyi(probability=1e-6).graph(20)
    with pytest.raises(ConfigError, match=r"use topology=ring"):
        SmallWorld().graph(2)
