import json

import numpy as np
import pytest

from fedsim.report.participation import MOST_CLIENTS, MOST_ROUNDS, participation, raster
from fedsim.report.round_columns import read_rounds


def rounds_of(*admitted, **more):
    lines = [
        {"server_round": r, "asked": len(clients), "admitted": clients, **more}
        for r, clients in enumerate(admitted, start=1)
    ]
    return read_rounds([json.dumps(line).encode() + b"\n" for line in lines])[0]


def test_a_small_run_has_one_cell_per_client_and_round():
    grid = raster(rounds_of([0, 2], [], [2]), 3)
    assert grid.share_KT.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_allclose(grid.rate_K, [1 / 3, 0, 2 / 3], rtol=1e-15)
    assert not grid.binned


def test_a_round_that_was_not_logged_and_round_0_leave_no_trace():
    text = b'{"server_round": %d, "admitted": [0]}\n'
    rounds, _ = read_rounds([text % 0, text % 1, text % 3])
    assert raster(rounds, 1).share_KT.tolist() == [[1, 0, 1]]


def test_a_large_run_is_binned_and_no_participation_is_lost():
    rng = np.random.default_rng(0)
    count = rng.integers(0, 140, 901)
    who = [np.sort(rng.choice(1001, n, replace=False)).tolist() for n in count]
    grid = raster(rounds_of(*who), 1001)
    assert grid.share_KT.shape == (MOST_CLIENTS, MOST_ROUNDS) and grid.binned
    assert grid.client_edges[[0, -1]].tolist() == [0, 1001]
    assert grid.round_edges[[0, -1]].tolist() == [1, 902]
    cells_KT = np.outer(np.diff(grid.client_edges), np.diff(grid.round_edges))
    assert cells_KT.sum() == 1001 * 901
    np.testing.assert_allclose((grid.share_KT * cells_KT).sum(), count.sum(), rtol=1e-12)
    assert 0 <= grid.share_KT.min() and grid.share_KT.max() <= 1
    took_part_K = grid.rate_K * 901 * np.diff(grid.client_edges)
    np.testing.assert_allclose(took_part_K.sum(), count.sum(), rtol=1e-12)
    # One bin, by hand: clients 5 .. 9 (edges k * 1001 // 200), rounds 3 .. 4 (1 + t * 901 // 400).
    assert grid.client_edges[1:3].tolist() == [5, 10] and grid.round_edges[1:3].tolist() == [3, 5]
    inside = sum(5 <= k < 10 for clients in who[2:4] for k in clients)
    assert grid.share_KT[1, 1] == inside / 10


def test_a_population_of_millions_costs_no_more():
    grid = raster(rounds_of([0, 4_999_999], [9_999_999]), 10_000_000)
    assert grid.share_KT.shape == (MOST_CLIENTS, 2)
    assert np.flatnonzero(grid.share_KT[:, 0]).tolist() == [0, 99]
    assert np.flatnonzero(grid.share_KT[:, 1]).tolist() == [199]


def test_clients_outside_the_population_are_left_out():
    assert raster(rounds_of([0, 5]), 2).share_KT.tolist() == [[1], [0]]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_reasons_are_named_and_many_of_them_summed_up(count):
    rejected = {f"reason {chr(97 + i)}": 9 - i for i in range(count)}
    picture = participation(rounds_of([0], [1], asked=60, rejected=rejected), 2)
    assert ("other reasons" in picture) == (count > 5)
    assert ">reason a<" in picture
    assert (">reason e<" in picture) == (count == 5)
    assert ">no reply in time<" in picture and ">Of these, rejected<" in picture


def test_a_rejected_reply_is_not_a_missing_one():
    rejected = {"error": 1, "stale": 1}
    assert "no reply" not in participation(rounds_of([0], asked=3, rejected=rejected), 3)
    assert "no reply" in participation(rounds_of([0], asked=4, rejected=rejected), 4)


def test_a_clean_run_shows_no_rejections():
    picture = participation(rounds_of([0], [1]), 2)
    assert "rejected" not in picture and "no reply" not in picture
