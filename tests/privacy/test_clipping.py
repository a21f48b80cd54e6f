import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.clipping import clip_, next_bound, noisy_fraction, norms, update_multiplier

NASTY = [0.0, -0.0, 1.0, -3.0, 1e30, -1e30, 3.4e38, 1e-30, 1.2e-38, 1e-45, 1e20]
BROKEN = [math.nan, math.inf, -math.inf]


def test_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0]])
    accepted = clip_(rows, 1.0)
    assert accepted.tolist() == [True, True, True, False, False]
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(rows, expected, rtol=2e-7, atol=0)
    assert torch.equal(rows[1], torch.tensor([0.3, 0.4]))  # within the bound: not a bit moves


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bits=st.binary(min_size=1200, max_size=1200),
    nasty=st.lists(st.sampled_from(NASTY + BROKEN), min_size=30, max_size=30),
    bound=st.sampled_from([1e-30, 1e-3, 1.0, 7.5, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_row_moves_the_sum_by_at_most_the_bound(
    bits: bytes, nasty: list[float], bound: float, dtype: torch.dtype
) -> None:
    """Rows of any bits at all and of chosen ones; 110 neighbours of each data set: 11,000 pairs."""
    any_bits = torch.frombuffer(bytearray(bits), dtype=torch.float32).reshape(100, 3)
    given_KP = torch.cat([any_bits, torch.tensor(nasty).reshape(10, 3)]).to(dtype)
    rows_KP = given_KP.clone()
    accepted_K = clip_(rows_KP, bound)
    assert torch.equal(accepted_K, torch.isfinite(given_KP).all(dim=1))
    assert torch.isfinite(rows_KP).all()
    assert (norms(rows_KP.double()) <= bound * (1 + 1e-6)).all()
    zero_K = (given_KP == 0).all(dim=1)
    assert torch.equal(rows_KP[zero_K], given_KP[zero_K])
    # No row notices another one, so D without row k gives the sum without clipped row k ...
    alone_KP = torch.cat(
        [one for one in given_KP.clone().split(10) if clip_(one, bound) is not None]
    )
    assert torch.equal(alone_KP, rows_KP)
    total_P = rows_KP.double().sum(0)
    for k in (0, 57, 109):  # ... and so it does
        rest_KP = torch.cat([given_KP[:k], given_KP[k + 1 :]])
        clip_(rest_KP, bound)
        moved_P = total_P - rest_KP.double().sum(0)
        assert float(norms(moved_P.unsqueeze(0))) <= bound * (1 + 1e-6)


def test_wide_rows_stay_below_the_bound_too() -> None:
    """Rounding of 200,000 products must not add up past 1e-6."""
    rows_KP = torch.randn(4, 200_000, generator=seeds.torch_rng(0, 1, 0, "rows"))
    rows_KP *= torch.tensor([1e-3, 1.0, 1e20, 1e35]).unsqueeze(1)
    clip_(rows_KP, 0.37)
    norm_K = norms(rows_KP)
    assert (norm_K <= 0.37 * (1 + 1e-6)).all()
    assert (norm_K[1:] >= 0.37 * (1 - 1e-6)).all()


def test_doubles_whose_squares_do_not_fit() -> None:
    rows_KP = torch.tensor([[1e300, 1e300], [1e-300, 0.0], [1e200, -1e200]], dtype=torch.float64)
    assert clip_(rows_KP, 1.0).all()
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [1e-300, 0.0], [half, -half]], dtype=torch.float64)
    torch.testing.assert_close(rows_KP, expected, rtol=1e-14, atol=0)


def test_half_precision_and_bad_bounds_are_refused() -> None:
    with pytest.raises(TypeError, match="float16"):
        clip_(torch.ones(1, 2, dtype=torch.float16), 1.0)
    for bound in (0.0, -1.0, math.nan, math.inf, 1e-40):
        with pytest.raises(ConfigError, match="clip_norm"):
            clip_(torch.ones(1, 2), bound)
    assert clip_(torch.ones(0, 3), 1.0).shape == (0,)
    assert clip_(torch.ones(2, 0, dtype=torch.float64), 1.0).tolist() == [True, True]


@pytest.mark.parametrize("start", [0.1, 1.0, 20.0, 1000.0])
def test_the_bound_finds_the_quantile_from_both_sides(start: float) -> None:
    norm_K = np.full(50, 10.0)
    bound = start
    for _ in range(300):
        within = int((norm_K <= bound).sum())
        bound = next_bound(
            bound, noisy_fraction(within, 50, 50, 0.0), quantile=0.5, learning_rate=0.05
        )
    # At a quantile of one value it goes up and down by one step of e^0.025 around it.
    assert 10 * math.exp(-0.03) < bound < 10 * math.exp(0.03)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [1.0, 20.0])
def test_it_finds_the_quantile_of_spread_norms_through_noise(quantile: float, start: float) -> None:
    rng = seeds.rng(0, 1, 0, "norms")
    bound, tail = start, []
    for _ in range(400):
        norm_K = rng.uniform(5.0, 15.0, size=200)
        fraction = noisy_fraction(
            int((norm_K <= bound).sum()), 200, 200, 10.0 * rng.standard_normal()
        )
        bound = next_bound(bound, fraction, quantile=quantile, learning_rate=0.1)
        tail.append(bound)
    # The quantile of U(5, 15); noise of 0.05 in the fraction is 0.5 in the norm, and averages out.
    assert np.mean(tail[-200:]) == pytest.approx(5 + 10 * quantile, abs=0.35)


def test_the_clipped_fraction_in_its_place_would_run_away() -> None:
    """The negative control: the sign that this rule must not have."""
    for start, far in ((1.0, 0.01), (20.0, 2000.0)):
        bound = start
        for _ in range(50):
            clipped = float(bound < 10.0)
            bound = next_bound(bound, clipped, quantile=0.5, learning_rate=0.2)
        assert bound < far if start < 10 else bound > far


def test_sum_and_count_together_cost_the_given_multiplier() -> None:
    z, count_sigma = 1.3, 4.0
    z_delta = update_multiplier(z, count_sigma)
    assert z_delta > z
    # mu^2 adds up: 1/z^2 = 1/z_delta^2 + 1/(2 sigma_b)^2.
    assert z_delta**-2 + (2 * count_sigma) ** -2 == pytest.approx(z**-2, rel=1e-12)
    assert update_multiplier(0.0, 4.0) == 0.0
    with pytest.raises(ConfigError, match=r"above 0\.65"):
        update_multiplier(1.3, 0.65)


def test_one_client_moves_the_shifted_count_by_one_half() -> None:
    """Whatever it sends, and also when it leaves: that is what 2 sigma_b rests on."""
    for others_within, others in ((0, 0), (3, 9), (9, 9)):
        without = noisy_fraction(others_within, others, 10, 0.0)
        for own in (0, 1):
            with_ = noisy_fraction(others_within + own, others + 1, 10, 0.0)
            assert abs(with_ - without) * 10 == pytest.approx(0.5, rel=1e-12)
