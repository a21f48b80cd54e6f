"""Distances by trees: exact without noise, the published query beside it, the laws of the noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from privacy.normal import keyed
from privacy.similarity.base import real
from privacy.similarity.exact import power_sums
from privacy.similarity.noise import noise_for
from privacy.similarity.projection import BETA, Projected, l2_bound
from privacy.similarity.tree import Tree
from tests.privacy.similarity._all import noiseless


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    """Records 0.1, 0.3, 0.6 over four leaves: left children hold 2 of 3, then 1 and 1."""
    tree = Tree(dimension=1, depth=2)
    x = torch.tensor([[0.1], [0.3], [0.6]], dtype=torch.float64)
    assert real(tree.sums(x)).tolist() == [2.0, 1.0, 1.0]
    assert tree.below(real(tree.sums(x)), 3).tolist() == [[0, 1, 2, 3, 3]]
    # Means of leaves: 0.125, 0.375, 0.625. To 0: their sum. To 0.5: the sum of |0.5 - them|.
    y = torch.tensor([[0.0], [0.5], [1.0], [1.5]], dtype=torch.float64)
    expected = [1.125, 0.375 + 0.125 + 0.125, 1.875, 3.375]
    assert noiseless(tree, x, y).tolist() == pytest.approx(expected, abs=1e-12)
    assert tree.l1("add_remove") == 2
    assert tree.l1("replace_one") == 3


@pytest.mark.parametrize("power", [1, 2, 3, 5])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 3.0)])
def test_without_noise_it_is_exact_up_to_a_leaf(power: int, low: float, high: float) -> None:
    n, d = 1000, 3
    tree = Tree(dimension=d, depth=10, low=low, high=high, power=power)
    x, y = (low + (high - low) * points(m, d, seed) for m, seed in ((n, 0), (50, 1)))
    y[:5] = torch.linspace(low - 1, high + 1, 5)[:, None]  # also outside the range
    error = (noiseless(tree, x, y) - power_sums(x, y, power)).abs()
    claimed = tree.apart(tree.prepare(real(tree.sums(x)), n), y, 0.0)
    assert (error <= claimed).all()
    if power == 1:
        assert error.max() <= d * n * tree.width / tree.leaves / 2
        assert error.max() > 0


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_the_published_query_is_within_1_plus_alpha(alpha: float) -> None:
    tree = Tree(dimension=2, depth=10)
    x, y = points(700, 2), points(60, 2, 1)
    grid = 1.0 / tree.leaves
    on_grid = [tree.leaf(t).double() * grid for t in (x, y)]
    truth = power_sums(*on_grid, 1)
    ratio = tree.published(tree.prepare(real(tree.sums(x)), 700), y, alpha) / truth
    assert ratio.min() >= 1 - 1e-12
    assert ratio.max() <= 1 + alpha + 1e-12
    assert ratio.max() > 1 + alpha / 5


def rmse(tree: Tree, n: int, epsilon: float, draws: int, published: float = 0.0) -> float:
    """Of the noise alone, over queries and draws."""
    x, y = points(n, tree.dimension), points(40, tree.dimension, 1)
    noise = noise_for(tree, "laplace", epsilon=epsilon, delta=0.0, relation="add_remove")
    sums, plain, found = tree.sums(x), noiseless(tree, x, y), []
    for k in range(draws):
        noisy = real(sums + noise.draw(tree, keyed(0, 1, k, "test")))
        prepared = tree.prepare(noisy, n)
        answer = tree.published(prepared, y, published) if published else tree.answer(prepared, y)
        found.append((answer - (plain if not published else power_sums(x, y, 1))).square().mean())
    return math.sqrt(float(torch.stack(found).mean()))


def test_noise_is_inverse_to_epsilon_and_below_the_published_query() -> None:
    tree = Tree(dimension=1, depth=12)
    errors = [rmse(tree, 4000, epsilon, 30) for epsilon in (0.25, 1.0, 4.0)]
    for larger, smaller in pairwise(errors):
        assert 3 <= larger / smaller <= 5
    # By the formula: b √2 · R/√2.
    assert errors[1] == pytest.approx(12.0, rel=0.2)
    assert rmse(tree, 4000, 1.0, 10, published=0.5) > 2 * errors[1]


def test_noise_grows_as_dimension_to_three_halves() -> None:
    errors = {d: rmse(Tree(dimension=d, depth=10), 1000, 1.0, 20) / d**1.5 for d in (1, 4, 16)}
    middle = sum(errors.values()) / 3
    assert all(abs(error / middle - 1) < 0.35 for error in errors.values()), errors


def test_l2_distances_by_projection() -> None:
    """Within a few times the spread of k half-normals, and unbiased over projections."""
    x, y = points(300, 5), points(20, 5, 1)
    truth = torch.cdist(y, x).sum(1)
    ratios = []
    for seed in range(8):
        bound = l2_bound(math.sqrt(5), 100, 300)
        inner = Tree(dimension=100, depth=9, low=-bound, high=bound)
        ratios.append(noiseless(Projected(dimension=5, inner=inner, law="l2", seed=seed), x, y))
    ratio = torch.stack(ratios) / truth
    spread = math.sqrt((1 - BETA**2) / 100) / BETA
    assert float((ratio.mean() - 1).abs()) < 3 * spread / math.sqrt(8)
    assert float((ratio - 1).abs().max()) < 4 * spread
