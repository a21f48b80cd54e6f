"""`graph.json`, where its nodes go in the picture, and what the page says of it."""

import json
import math

import numpy as np
import pytest

from fedsim.report import traffic
from fedsim.report.graph_layout import layout
from fedsim.report.html import write_report
from fedsim.report.network import read_network
from fedsim.report.run_folder import RunData
from fedsim.report.traffic import _thickest, _width
from fedsim.topology.hierarchical import Hierarchical
from fedsim.topology.random_regular import RandomRegular
from fedsim.topology.ring import Ring
from fedsim.topology.small_world import SmallWorld
from fedsim.topology.star import Star
from fedsim.topology.torus import Torus
from tests.report.test_html import HOSTILE, Page


def content(part, num_clients, carried=lambda m: 1000.0 * m):
    """What a run writes of a topology whose m-th link has carried so much."""
    graph = part.graph(num_clients, 0)
    links = graph.edges(data=True)
    return {
        "nodes": [{"id": n, "role": role} for n, role in graph.nodes(data="role")],
        "edges": [
            {"a": a, "b": b, "bytes": carried(m), "bandwidth": None}
            | {"latency": link["latency"], "loss": link["loss"]}
            for m, (a, b, link) in enumerate(links)
        ],
    }


def places(part, num_clients):
    network = read_network(content(part, num_clients))
    place_N2, leaves_M = layout(network)
    assert place_N2.shape == (len(network), 2)
    assert np.isfinite(place_N2).all() and np.abs(place_N2).max() <= 1 + 1e-9
    assert (place_N2 == layout(network)[0]).all()
    return network, place_N2, leaves_M


SIZES = (16, 100, 1000)


@pytest.mark.parametrize("count", SIZES)
def test_a_star_lies_around_its_server(count):
    network, place_N2, leaves_M = places(Star(), count)
    assert leaves_M is None
    server = network.roles.index("server")
    assert place_N2[server].tolist() == [0, 0]
    radius_N = np.linalg.norm(np.delete(place_N2, server, 0), axis=1)
    assert radius_N.min() > 0.4 and radius_N.max() == pytest.approx(1)
    assert len(np.unique(place_N2.round(6), axis=0)) == count + 1  # nobody hides another


@pytest.mark.parametrize("count", SIZES)
def test_clients_lie_behind_their_edge_server(count):
    part = Hierarchical(edge_servers=5, assignment="drawn")
    network, place_N2, _ = places(part, count)
    at = {name: place_N2[i] for i, name in enumerate(network.names)}
    graph = part.graph(count, 0)
    for client in range(count):
        (edge,) = graph[client]
        behind, ahead = at[str(client)], at[edge]
        others = [at[f"edge-{e}"] for e in range(5) if f"edge-{e}" != edge]
        nearest = min(np.linalg.norm(behind - other) for other in others)
        assert behind @ ahead > 0 and np.linalg.norm(behind) > np.linalg.norm(ahead)
        assert np.linalg.norm(behind - ahead) <= nearest + 0.5
    assert len(np.unique(place_N2.round(6), axis=0)) == len(network)


@pytest.mark.parametrize("count", SIZES)
def test_a_ring_and_a_small_world_are_circles(count):
    for part in (Ring(), SmallWorld()):
        _, place_N2, _ = places(part, count)
        np.testing.assert_allclose(np.linalg.norm(place_N2, axis=1), 1, rtol=1e-12)
        step_N = np.linalg.norm(place_N2 - np.roll(place_N2, 1, 0), axis=1)
        np.testing.assert_allclose(step_N, 2 * math.sin(math.pi / count), rtol=1e-9)


@pytest.mark.parametrize(("count", "rows"), [(16, 4), (100, 10), (1000, 25), (12, 3), (21, 3)])
def test_a_torus_is_a_grid_that_is_left_at_its_borders(count, rows):
    network, place_N2, leaves_M = places(Torus(), count)
    assert len(np.unique(place_N2[:, 1].round(6))) == rows
    assert leaves_M.sum() == rows + count // rows
    inside = network.ends_M2[~leaves_M]
    step_M = np.abs(place_N2[inside[:, 0]] - place_N2[inside[:, 1]]).sum(1)
    np.testing.assert_allclose(step_M, step_M[0], rtol=1e-9)


def test_other_graphs_are_laid_out_by_forces_and_are_no_torus():
    for count in (16, 120):
        _, place_N2, leaves_M = places(RandomRegular(), count)
        assert leaves_M is None and np.ptp(place_N2, axis=0).min() > 0.5
    apart = {"nodes": [{"id": k, "role": "client"} for k in range(5)], "edges": []}
    assert np.isfinite(layout(read_network(apart))[0]).all()
    one = {"nodes": apart["nodes"][:1], "edges": []}
    assert layout(read_network(one))[0].shape == (1, 2)


def test_width_follows_the_square_root_of_the_bytes_and_many_links_are_thin():
    assert _width(4.0, np.array([0.0, 0.5, 1.0])).tolist() == [0.4, 2.2, 4.0]
    spokes = np.zeros((1000, 2, 2))
    spokes[:, 1, 0] = 1
    assert _thickest(spokes[:16]) == 4.5 and _thickest(spokes) == 1.2


def test_the_page_has_the_picture_its_words_and_the_busiest_links(fake_run):
    run = fake_run(rounds=1, faults=False, per_client=False)
    assert "Links and their traffic" not in write_report(run).read_text()
    part = Hierarchical(edge_servers=3, bandwidth=2e6, latency_s=0.05, loss=0.01)
    graph = content(part, 16, lambda m: 0.0 if m == 5 else 1e5 * m)
    graph["edges"][4]["bandwidth"] = 2e6
    (run / "graph.json").write_text(json.dumps(graph))
    html = write_report(run).read_text()
    text = Page(html).text
    total = sum(edge["bytes"] for edge in graph["edges"])
    words = (
        f"16 clients, 3 edge servers, 1 server; 19 links, which have carried {total / 1e6:.3g} MB"
    )
    assert words in text
    last = graph["edges"][18]
    assert f"Most: {last['a']} - {last['b']}, 1.8 MB." in text
    assert f'aria-label="Graph of the network. {words}' in html
    assert "The 10 busiest links" in text and "no limit" in text and "50 ms" in text
    assert "nothing" in text  # the fifth link's key
    assert "graph.json" not in text
    assert traffic.traffic(read_network(graph)) in html  # equal data give equal bytes


def test_names_of_a_foreign_file_stay_words():
    graph = {
        "nodes": [{"id": HOSTILE, "role": "server"}, {"id": "$x_{1}$", "role": HOSTILE}],
        "edges": [{"a": "$x_{1}$", "b": HOSTILE, "bytes": 3}],
    }
    text = Page(traffic.traffic(read_network(graph))).text
    assert "1 server, 1 other; 1 link, which have carried 3 B in all" in text


GOOD = {"nodes": [{"id": 0, "role": "client"}, {"id": 1, "role": "client"}]}
EDGE = {"a": 0, "b": 1, "bytes": 5.0}


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ('{"nodes": [{"id": 0', "graph.json is damaged or unfinished"),
        ("[]", "graph.json is damaged"),
        ({"nodes": []}, "graph.json does not hold what it should ('edges')"),
        ({"nodes": {}, "edges": []}, "'nodes' is no list of objects"),
        ({"nodes": [3], "edges": []}, "'nodes' is no list of objects"),
        ({"nodes": [{"role": "client"}], "edges": []}, "('id')"),
        ({"nodes": [{"id": 1.5, "role": "client"}], "edges": []}, "neither text nor a whole"),
        ({"nodes": [{"id": 1, "role": None}], "edges": []}, "neither text nor a whole"),
        ({"nodes": GOOD["nodes"] * 2, "edges": []}, "node '0' is there twice"),
        ({**GOOD, "edges": [{**EDGE, "b": 7}]}, "'0' - '7' has an end that is no node"),
        ({**GOOD, "edges": [EDGE, {**EDGE, "a": 1, "b": 0}]}, "a link is there twice"),
        ({**GOOD, "edges": [{**EDGE, "b": 0}]}, "joins a node to itself"),
        ({**GOOD, "edges": [{**EDGE, "bytes": -1}]}, "bytes is negative or too large"),
        ({**GOOD, "edges": [{**EDGE, "bytes": math.nan}]}, "bytes is negative or too large"),
        ({**GOOD, "edges": [{**EDGE, "bytes": "9"}]}, "bytes is no number"),
        ({**GOOD, "edges": [{**EDGE, "loss": 2}]}, "loss is negative or too large"),
        ({**GOOD, "edges": [{**EDGE, "latency": 10**400}]}, "graph.json does not hold"),
    ],
)
def test_a_damaged_file_is_one_sentence(fake_run, graph, said):
    run = fake_run(rounds=1)
    (run / "graph.json").write_text(graph if isinstance(graph, str) else json.dumps(graph))
    data = RunData.read(run)
    assert data.network is None
    (problem,) = data.problems
    assert said in problem and len(problem) < 200


def test_a_network_too_large_for_a_picture_is_told_in_words(monkeypatch):
    monkeypatch.setattr(traffic, "MOST_NODES", 15)
    page = traffic.traffic(read_network(content(Ring(), 16)))
    assert "Not drawn" in page and "<svg" not in page and "15 kB" in page


def test_every_shape_and_size_is_drawn_and_more_links_are_one_image():
    for part, count in [(Star(), 16), (Torus(), 100), (SmallWorld(), 1000)]:
        page = traffic.traffic(read_network(content(part, count)))
        assert ("data:image/png" in page) == (count == 1000)
        assert len(page) < 1_500_000
