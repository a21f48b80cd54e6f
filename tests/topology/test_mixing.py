"""Metropolis-Hastings weights by hand, and the eigenvalue against closed forms."""

import networkx as nx
import numpy as np
import pytest

from fedsim.topology import mixing
from fedsim.topology.mixing import among, metropolis_hastings, second_eigenvalue


def doubly_stochastic(weights):
    dense = weights.toarray()
    assert (dense >= 0).all()
    assert (dense == dense.T).all()
    np.testing.assert_allclose(dense.sum(0), 1, rtol=0, atol=1e-15 * len(dense))
    return dense


def test_a_star_of_three_and_an_end_by_hand():
    graph = nx.Graph([(0, 1), (0, 2), (2, 3), (2, 2)])
    got = doubly_stochastic(metropolis_hastings(graph, 4))
    third = 1 / 3
    expected = [
        [third, third, third, 0],
        [third, 2 * third, 0, 0],
        [third, 0, third, third],
        [0, 0, third, 2 * third],
    ]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)


def test_what_the_absent_had_goes_to_those_present():
    weights = metropolis_hastings(nx.cycle_graph(5), 5)
    got = doubly_stochastic(among(weights, np.array([0, 1, 3])))
    third = 1 / 3
    expected = [[2 * third, third, 0], [third, 2 * third, 0], [0, 0, 1]]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)
    assert among(weights, np.array([4])).toarray().tolist() == [[1.0]]


@pytest.mark.parametrize("count", [4, 5, 12, 301, 400])
def test_the_eigenvalue_of_a_ring(count):
    """1/3 + 2/3 cos(2πk/N); sparse and dense alike."""
    k = np.arange(1, count)
    exact = np.abs(1 / 3 + 2 / 3 * np.cos(2 * np.pi * k / count)).max()
    weights = metropolis_hastings(nx.cycle_graph(count), count)
    assert second_eigenvalue(weights) == pytest.approx(exact, rel=1e-9)


def test_the_sparse_way_agrees_with_the_dense_one(monkeypatch):
    graph = nx.random_regular_graph(4, 200, seed=1)
    weights = metropolis_hastings(graph, 200)
    dense = second_eigenvalue(weights)
    monkeypatch.setattr(mixing, "DENSE", 10)
    assert second_eigenvalue(weights) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_graphs_and_parts_of_them_are_doubly_stochastic(seed):
    rng = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(40, 0.15, seed=seed)
    weights = metropolis_hastings(graph, 40)
    doubly_stochastic(weights)
    doubly_stochastic(among(weights, np.flatnonzero(rng.random(40) < 0.6)))
