"""Krum and Multi-Krum against hand-computed values and a literal reading of the paper."""

from itertools import combinations

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedsim.errors import ConfigError
from fedsim.stacks import squared_distances
from strategies.krum import Krum, krum_scores, still_hidden
from tests.strategies._robust import aggregate, column
from tests.strategies._toy import ToyGrid, everyone, finish, loop, quadratic, reply

FIVE = column(0, 1, 3, 7, 100)


def literal_krum(updates, f):
    """Blanchard et al., section 4, word for word: indices by score, lowest first."""
    rows, n = updates.double().numpy(), len(updates)
    scores = []
    for i in range(n):
        others = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(others[: n - f - 2]))
    return sorted(range(n), key=lambda i: (scores[i], i)), scores


def test_scores_by_hand():
    """f = 1: the two nearest others; 0: 1 + 9, 1: 1 + 4, 3: 4 + 9, 7: 16 + 36."""
    scores = krum_scores(squared_distances(FIVE), nearest=2)
    assert scores.tolist() == pytest.approx([10, 5, 13, 52, 93**2 + 97**2], rel=1e-12)


@pytest.mark.parametrize(
    ("selected", "expected"),
    [(1, 1.0), (2, 0.5), (None, 0.5), (4, 0.5)],  # at most n − f − 2 = 2
)
def test_the_mean_of_the_lowest_scores(selected, expected):
    result = aggregate(Krum(num_malicious=1, num_selected=selected), FIVE)
    assert result.item() == pytest.approx(expected, rel=1e-12)


def test_claimed_samples_do_not_count():
    claims = [1e7, 1, 1, 1, 1e7]
    result = aggregate(Krum(num_selected=2), FIVE, examples=claims)
    assert result.item() == pytest.approx(0.5, rel=1e-12)


def test_server_lr():
    assert aggregate(Krum(server_lr=0.25), FIVE).item() == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_literal_reading(seed):
    rng = torch.Generator().manual_seed(seed)
    n, f = 5 + seed % 9, (2 + seed % 9) // 2 % 4
    updates = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    order, scores = literal_krum(updates, f)
    got = krum_scores(squared_distances(updates), n - f - 2)
    assert got.tolist() == pytest.approx(scores, rel=1e-12)
    for selected in (1, max(1, n - f - 2)):
        expected = updates[order[:selected]].mean(0)
        result = aggregate(Krum(num_malicious=f, num_selected=selected), updates)
        assert torch.allclose(result, expected, rtol=1e-12, atol=1e-14)


def test_small_updates_of_large_weights():
    """Products of float32 weights near 1000 cannot see differences of 0.01; ours can."""
    rng = torch.Generator().manual_seed(0)
    updates = torch.randn(9, 200, generator=rng) / 100
    models = 1000 + updates
    order, _ = literal_krum((models - 1000).double(), 2)
    result = aggregate(Krum(num_malicious=2), updates, start=1000.0)
    assert torch.equal(result, models[order[0]] - 1000)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_replies_leave_the_model(count, caplog):
    strategy = Krum(num_malicious=1)
    assert aggregate(strategy, FIVE[:count]).item() == 0
    aggregate(strategy, FIVE[:count])
    assert caplog.text.count("needs 5 replies") == 1, "said once"


@pytest.mark.parametrize(
    ("malicious", "found", "limit", "expected"),
    [(2, 0, 2, 2), (2, 2, 2, 2), (3, 0, 2, None), (3, 1, 2, 2), (3, 3, 0, 0), (1, 1, -1, None)],
)
def test_who_was_rejected_hides_no_more(malicious, found, limit, expected):
    assert still_hidden(malicious, found, limit) == expected


def nan(message):
    record = message.content.array_records["arrays"].copy()
    record["x"] = Array(np.full(2, np.nan, np.float32))
    return reply(message, record)


@pytest.mark.parametrize("bad", ["rejected", "twice", "silent"])
def test_a_round_that_rejections_made_too_small(bad):
    """Six replies of eight are too few for f = 3, unless the missing ones were found out.

    A single attacker that is found out twice is still one.
    """

    def answer(message):
        client = grid.client_index(message.metadata.dst_node_id)
        if client >= 6:
            if bad == "silent" or (bad == "twice" and client == 7):
                return []
            return [nan(message)] * (2 if bad == "twice" else 1)
        return [quadratic(message, centre=1.0 + client / 10)]

    grid = ToyGrid(8, answer)
    start = {"x": torch.zeros(2)}
    params, (report,) = finish(loop(Krum(num_malicious=3), grid, everyone(8, 1)), start)
    assert len(report.admitted) == 6
    moved = bool(params["x"].abs().max() > 0.1)
    # With six replies Krum stands one attacker; of three, two found leave one, one found two.
    assert moved == (bad == "rejected")


def test_pairs_are_symmetric_and_exact_in_float64():
    updates = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squared = squared_distances(updates)
    for i, j in combinations(range(6), 2):
        expected = float((updates[i] - updates[j]).square().sum())
        assert squared[i, j].item() == pytest.approx(expected, rel=1e-12)
        assert squared[j, i] == squared[i, j]


def test_ranges():
    with pytest.raises(ConfigError, match="num_malicious"):
        Krum(num_malicious=-1)
    with pytest.raises(ConfigError, match="num_selected"):
        Krum(num_selected=0)
