import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import seeds
from fedsim.errors import ConfigError, FedsimError
from privacy.normal import keyed
from privacy.quantise import Lattice, hadamard_, rotation_signs


def sources(count: int, purpose: str = "round"):  # type: ignore[no-untyped-def]
    return [keyed(0, 1, c, purpose).words for c in range(count)]


def test_the_bound_by_hand() -> None:
    # C/g = 8, d = 4, sqrt(2 ln(1/beta)) = 1: min((8 + 2)^2, 64 + 1 + 1 * (8 + 1)) = 74.
    assert Lattice(dimension=4, clip_norm=2.0, spacing=0.25).squared_norm == 74
    # A tiny beta leaves the bound that always holds.
    sure = Lattice(dimension=4, clip_norm=2.0, spacing=0.25, beta=1e-30)
    assert sure.squared_norm == 100
    assert sure.sensitivity == 10.0
    assert sure.l1_sensitivity == 20.0
    assert sure.largest == 8
    # L1 of integers is at most their squared L2: 1 + 1 + ... in few of many coordinates.
    coarse = Lattice(dimension=10_000, clip_norm=1.0, spacing=1.0, beta=1e-30, rotate=False)
    assert coarse.l1_sensitivity == min(100 * coarse.sensitivity, coarse.squared_norm)


def test_hadamard_is_scipys_and_its_own_inverse() -> None:
    rows_Kd = seeds.rng(0, 1, 0, "h").standard_normal((3, 16))
    expected = rows_Kd @ scipy.linalg.hadamard(16) / 4
    np.testing.assert_allclose(hadamard_(rows_Kd.copy()), expected, atol=1e-14)
    np.testing.assert_allclose(hadamard_(hadamard_(rows_Kd.copy())), rows_Kd, atol=1e-14)


def test_the_rotation_is_public_and_changes_every_round() -> None:
    first = rotation_signs(4096, 0, 1)
    assert set(first) == {-1.0, 1.0}
    assert (first == rotation_signs(4096, 0, 1)).all()
    assert abs((first * rotation_signs(4096, 0, 2)).mean()) < 5 / 64


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from([0.0, 1e30, -1e300, 1e-310]),
        min_size=5,
        max_size=5,
    ),
    spacing=st.sampled_from([2.0, 0.3, 1e-3, 1e-8]),
    rotate=st.booleans(),
)
def test_no_row_leaves_with_more_than_the_bound(
    row: list[float], spacing: float, rotate: bool
) -> None:
    lattice = Lattice(dimension=5, clip_norm=1.5, spacing=spacing, rotate=rotate)
    signs = rotation_signs(lattice.width, 0, 1) if rotate else None
    v_Kd = lattice.encode(np.array([row, row]), sources(2), signs)
    assert v_Kd.dtype == np.int64
    for v_d in v_Kd.tolist():
        assert sum(x * x for x in v_d) <= lattice.squared_norm
        assert max(map(abs, v_d)) <= lattice.largest
        assert sum(map(abs, v_d)) <= lattice.l1_sensitivity


def test_a_row_at_the_bound_is_rounded_again_and_again_not_cut() -> None:
    """All halves: sums of squares vary, and the norm bound cuts off the upper ones."""
    lattice = Lattice(dimension=64, clip_norm=4.0, spacing=1.0, beta=0.9, rotate=False)
    row = np.full((1, 64), 0.5)
    norms = []
    for trial in range(200):
        v_Kd = lattice.encode(row, [keyed(0, trial, 0, "again").words], None)
        norms.append(int((v_Kd**2).sum()))
    assert max(norms) <= lattice.squared_norm < 64
    # Unconditioned it would be Binomial(64, 1/2), above the bound more often than not seen here.
    unbound = seeds.rng(0, 1, 0, "b").binomial(64, 0.5, 200)
    assert (unbound > lattice.squared_norm).any()
    assert np.mean(norms) == pytest.approx(32, abs=3)


@pytest.mark.parametrize("rotate", [False, True])
def test_rounding_is_unbiased_and_decodes_to_the_clipped_vector(rotate: bool) -> None:
    rows_KP = np.array([[0.3, -0.4, 0.05], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.9, 0.9]])
    half = math.sqrt(0.5)  # the last row is outside by its norm, not by a coordinate
    clipped = np.array([[0.3, -0.4, 0.05], [0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, half, half]])
    lattice = Lattice(dimension=3, clip_norm=1.0, spacing=0.01, beta=1e-6, rotate=rotate)
    signs = rotation_signs(lattice.width, 0, 1) if rotate else None
    trials = 3000
    words = sources(4, "unbiased")
    total = sum(lattice.encode(rows_KP, words, signs) for _ in range(trials))
    for k in range(4):
        mean_P = lattice.decode(total[k], signs) / trials
        # A step's rounding has a deviation of half a step at most, rotated or not.
        assert np.abs(mean_P - clipped[k]).max() <= 5 * 0.5 * 0.01 / math.sqrt(trials)


def test_a_bias_of_a_hundredth_of_a_step_would_be_seen() -> None:
    lattice = Lattice(dimension=2**18, clip_norm=1e4, spacing=1.0, rotate=False)
    row_1P = seeds.rng(0, 1, 0, "bias").uniform(-3, 3, size=(1, 2**18))
    error_P = (lattice.encode(row_1P, sources(1, "bias"), None) - row_1P)[0]
    assert np.abs(error_P).max() < 1
    rest_P = row_1P[0] - np.floor(row_1P[0])
    deviation = math.sqrt((rest_P * (1 - rest_P)).mean() / rest_P.size)
    assert 4.417 * deviation < 0.005
    assert abs(error_P.mean()) < 4.417 * deviation


def test_rows_that_are_not_finite_and_spacings_too_fine_are_refused() -> None:
    lattice = Lattice(dimension=2, clip_norm=1.0, spacing=0.1, rotate=False)
    with pytest.raises(FedsimError, match="reject it first"):
        lattice.encode(np.array([[1.0, math.nan]]), sources(1), None)
    with pytest.raises(ConfigError, match=r"spacing: 1e-10 .* at least"):
        Lattice(dimension=2, clip_norm=1.0, spacing=1e-10)
