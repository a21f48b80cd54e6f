"""Bulyan against hand-computed values and a literal reading of the paper."""

import numpy as np
import pytest
import torch

from fedsim.stacks import squared_distances
from strategies.bulyan import Bulyan, mean_around_median, select
from tests.strategies._robust import aggregate, column
from tests.strategies.test_krum import literal_krum


def literal_bulyan(updates, f):
    """El Mhamdi et al., section 4: Krum, take it out, again; then a mean around the median."""
    left, chosen = list(range(len(updates))), []
    while len(chosen) < len(updates) - 2 * f:
        rows = updates[left].double().numpy()
        nearest = max(1, len(left) - f - 2)
        scores = [
            sum(
                sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(len(left)) if j != i)[
                    :nearest
                ]
            )
            for i in range(len(left))
        ]
        chosen.append(left.pop(int(np.argmin(scores))))
    picked = updates[sorted(chosen)].double().numpy()
    beta, result = len(picked) - 2 * f, np.empty(picked.shape[1])
    for p in range(picked.shape[1]):
        median = np.median(picked[:, p])
        result[p] = np.mean(sorted(picked[:, p], key=lambda v: (abs(v - median), v))[:beta])
    return sorted(chosen), result


def test_selection_by_hand():
    """n = 7, f = 1: five rounds of Krum with 4, 3, 2, 1, 1 neighbours.

    0: 1+4+9+100, 1: 1+1+4+81, 2: 4+1+1+64, 3: 9+4+1+49 -> 63, so 3 goes first; left are
    0: 1+4+100, 1: 1+1+81, 2: 4+1+64 -> 69, and 10: 64+81+400 -> 2; left are 0: 1+100, 1: 1+81 ->
    1; left are 0: 100, 10: 100, 30: 400, 1000 -> 0; left are 10, 30: 400 each -> 10.
    """
    rows = column(0, 1, 2, 3, 10, 30, 1000)
    assert select(squared_distances(rows), 1, 5).tolist() == [0, 1, 2, 3, 4]
    # Of 0, 1, 2, 3, 10 the three closest to 2 are 2, 1, 3.
    assert aggregate(Bulyan(num_malicious=1), rows).item() == pytest.approx(2, rel=1e-12)


def test_the_mean_around_the_median_by_hand():
    """Median 2; 0 and 4 are equally far, and the lower one counts."""
    assert mean_around_median(column(0, 1, 2, 4, 9), 3).item() == 1
    assert mean_around_median(column(0, 1, 2, 4, 9), 1).item() == 2
    assert mean_around_median(column(0, 1, 2, 4), 2).item() == 1.5


@pytest.mark.parametrize("seed", range(20))
def test_against_a_literal_reading(seed):
    f = 1 + seed % 3
    rng = torch.Generator().manual_seed(seed)
    updates = torch.randn(4 * f + 3 + seed % 4, 5, generator=rng, dtype=torch.float64)
    updates[0] *= 100
    chosen, expected = literal_bulyan(updates, f)
    theta = len(updates) - 2 * f
    assert select(squared_distances(updates), f, theta).tolist() == chosen
    result = aggregate(Bulyan(num_malicious=f), updates)
    assert result.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_scoring_once_is_another_rule():
    """What Flower's does: some random case must tell the two apart, or the test above is blind."""
    different = 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        updates = torch.randn(15, 5, generator=rng, dtype=torch.float64)
        chosen, _ = literal_bulyan(updates, 3)
        different += chosen != sorted(literal_krum(updates, 3)[0][:9])
    assert different > 5


def test_without_attackers_it_is_the_mean():
    updates = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(aggregate(Bulyan(num_malicious=0), updates), updates.mean(0), rtol=1e-12)


def test_infinite_distances_leave_the_honest_ones():
    """Squares of 1e200 overflow even float64."""
    updates = column(0, 1, 2, 3, 4, 5, 1e200)
    assert 0 <= aggregate(Bulyan(num_malicious=1), updates).item() <= 5


def test_too_few_replies_leave_the_model(caplog):
    assert aggregate(Bulyan(num_malicious=1), column(1, 2, 3, 4, 5, 6)).item() == 0
    assert "needs 7 replies and has 6" in caplog.text


def test_rounding_does_not_decide_between_two_that_are_each_others_nearest():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        squared = squared_distances(torch.randn(11, 500, generator=rng, dtype=torch.float64))
        assert torch.equal(squared, squared.T)
