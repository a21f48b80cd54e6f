"""The geometric median against closed forms and a general optimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from strategies.geometric_median import GeometricMedian
from tests.strategies._robust import aggregate, column

EXACT = {"tolerance": 1e-13, "iterations": 20_000, "smoothing": 1e-10}


def test_on_a_line_it_is_the_median():
    assert aggregate(GeometricMedian(**EXACT), column(0, 1, 5, 6, 1e6)).item() == pytest.approx(5)


def test_of_a_triangle_it_is_the_fermat_point():
    """Equilateral: the centre. An angle of 120 degrees or more: that corner."""
    h = 3**0.5 / 2
    regular = torch.tensor([[0, 0], [1, 0], [0.5, h]], dtype=torch.float64)
    assert aggregate(GeometricMedian(**EXACT), regular).tolist() == pytest.approx([0.5, h / 3])
    blunt = torch.tensor([[0, 0], [1, 0.1], [-1, 0.1]], dtype=torch.float64)
    result = aggregate(GeometricMedian(**EXACT), blunt)
    assert result.tolist() == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("seed", range(6))
def test_against_scipy(seed, weighting):
    rng = np.random.default_rng(seed)
    rows, claims = rng.normal(size=(4 + seed, 3)), rng.integers(1, 9, 4 + seed).astype(float)
    rows[0] *= 20
    alpha = np.ones(len(rows)) if weighting == "uniform" else claims

    def cost(v):
        return float((alpha * np.linalg.norm(rows - v, axis=1)).sum())

    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000}
    best = minimize(cost, np.median(rows, 0), method="Nelder-Mead", options=options).x
    strategy = GeometricMedian(weighting=weighting, **EXACT)
    result = aggregate(strategy, torch.from_numpy(rows), examples=claims).numpy()
    assert result == pytest.approx(best, abs=1e-6)
    assert cost(result) <= cost(best) * (1 + 1e-9)


def test_the_default_tolerance_is_enough_for_a_model():
    rng = torch.Generator().manual_seed(0)
    updates = torch.randn(20, 50, generator=rng, dtype=torch.float64)
    exact, usual = (aggregate(GeometricMedian(**kw), updates) for kw in (EXACT, {}))
    assert (exact - usual).norm() < 1e-4 * updates.norm(dim=1).median()


def test_one_iteration_by_hand():
    """From the median 1 of 0, 1, 4: distances 1, 0 and 3, of which 0 counts as ν = 0.5."""
    strategy = GeometricMedian(iterations=1, smoothing=0.5, tolerance=0, weighting="examples")
    result = aggregate(strategy, column(0, 1, 4), examples=[1, 1, 3])
    assert result.item() == pytest.approx((0 * 1 + 1 * 2 + 4 * 1) / (1 + 2 + 1), rel=1e-12)


def test_equal_updates_are_returned():
    updates = torch.full((5, 3), 0.3, dtype=torch.float64)
    assert torch.allclose(aggregate(GeometricMedian(), updates), updates[0], rtol=1e-12)
