import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.errors import ConfigError
from privacy import normal
from privacy.normal import NoiseSource, keyed, normal_like, normal_rows, system

Z = 4.417  # 1e-5 false alarms
SOURCES = {
    "keyed": lambda: keyed(0, 1, 2, "noise"),
    "system": lambda: system(),
    "sum of four": lambda: system(terms=4),
}


def moments_fit(draws: np.ndarray, sigma: float = 1.0) -> bool:
    """Mean and variance within 4.417 standard errors, of N(0, sigma^2)."""
    n = draws.size
    mean = abs(draws.mean()) / (sigma / math.sqrt(n)) <= Z
    variance = abs((draws**2).mean() / sigma**2 - 1) / math.sqrt(2 / n) <= Z
    return bool(mean and variance)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_variance_and_shape_of_125_000_draws(name: str, dtype: torch.dtype) -> None:
    draws = SOURCES[name]().normal(125_000, dtype=dtype)
    assert draws.dtype == dtype
    assert moments_fit(draws.double().numpy())
    assert stats.kstest(draws.double().numpy(), "norm").pvalue > 1e-5


@pytest.mark.parametrize("name", SOURCES)
def test_an_error_of_one_percent_is_caught_at_a_million_draws(name: str) -> None:
    draws = SOURCES[name]().normal(1_000_000, dtype=torch.float64).numpy()
    assert moments_fit(draws)
    assert not moments_fit(draws * 1.01)
    assert not moments_fit(draws / 1.01)


def test_a_key_repeats_its_numbers_and_shares_them_with_no_other() -> None:
    first = keyed(0, 1, 2, "noise").normal(100_000)
    assert torch.equal(first, keyed(0, 1, 2, "noise").normal(100_000))
    for key in [(1, 1, 2, "noise"), (0, 2, 2, "noise"), (0, 1, 3, "noise"), (0, 1, 2, "count")]:
        other = keyed(*key).normal(100_000)
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 5 / math.sqrt(100_000)


def test_the_systems_noise_is_never_the_same_and_takes_no_seed() -> None:
    assert not torch.equal(system().normal(8), system().normal(8))
    assert not system().reproducible
    with pytest.raises(ConfigError, match="takes no seed, got 7"):
        system(seed=7)
    with pytest.raises(ConfigError, match="terms: 3"):
        system(terms=3)


def test_the_statements_say_where_the_noise_is_from() -> None:
    source: NoiseSource = keyed(0, 1, 0, "noise")
    assert source.reproducible
    assert source.statement == (
        "simulation-grade noise (keyed generator): for research, not for release"
    )
    assert system().statement == (
        "noise from the operating system's generator; floating-point Gaussian"
    )
    assert system(terms=4).statement.endswith("each the sum of 4 divided by 2")


def test_box_muller_by_hand_and_at_its_ends() -> None:
    half, quarter = np.uint64(2**63), np.uint64(2**62)
    pair = normal.box_muller(np.array([half, quarter], dtype=np.uint64))
    # radius sqrt(-2 ln 1/2), a quarter turn: (0, radius).
    assert pair == pytest.approx([0.0, math.sqrt(2 * math.log(2))], abs=1e-12)
    ends = normal.box_muller(np.array([0, 0, 2**64 - 1, 2**64 - 1], dtype=np.uint64))
    assert np.isfinite(ends).all()
    assert np.abs(ends).max() < 8.66


def test_float32_box_muller_by_hand_and_at_its_ends() -> None:
    def made(*words: int) -> np.ndarray:
        out = np.empty(2 * len(words), np.float32)
        normal.box_muller_float32(np.array(words, dtype=np.uint64), out=out)
        return out

    # Little-endian: the low 32 bits make the radius, the high ones the angle.
    half, quarter_turn = 2**30, 2**30 << 32
    assert made(half | quarter_turn) == pytest.approx([0, math.sqrt(2 * math.log(2))], abs=1e-6)
    assert made(half | 2**31 | quarter_turn) == pytest.approx(made(half | quarter_turn))
    largest = math.sqrt(-2 * math.log(2.0**-32))
    assert made(0) == pytest.approx([largest, 0], abs=1e-5)
    assert made(2**31 << 32) == pytest.approx([-largest, 0], abs=1e-5)
    ends = made(2**64 - 1, 2**31 - 1)
    assert np.isfinite(ends).all()
    assert largest < 6.661


def test_float32_normals_have_the_tails_of_the_normal_law() -> None:
    draws = keyed(0, 1, 2, "noise").normal(4_000_000).abs().numpy()
    for bound in (3.0, 4.0, 4.5):
        expected = draws.size * 2 * stats.norm.sf(bound)
        assert abs((draws > bound).sum() - expected) <= Z * math.sqrt(expected)


def test_the_two_halves_of_box_muller_are_uncorrelated() -> None:
    for draws in (
        system().normal(200_000, dtype=torch.float64),
        keyed(0, 1, 2, "noise").normal(2 * normal.BLOCK).double(),
    ):
        for power in (1, 2):
            correlation = torch.corrcoef(draws.reshape(2, -1) ** power)[0, 1]
            assert abs(correlation) < 5 / math.sqrt(len(draws) / 2)


def test_one_flat_draw_is_split_over_the_parameters() -> None:
    tensors = {"w": torch.empty(2, 3), "b": torch.empty(3), "empty": torch.empty(0)}
    noise = normal_like(keyed(0, 1, 2, "noise"), tensors)
    flat = torch.cat([noise[name].reshape(-1) for name in tensors])
    assert {n: t.shape for n, t in noise.items()} == {n: t.shape for n, t in tensors.items()}
    assert torch.equal(flat, keyed(0, 1, 2, "noise").normal(9))
    rows = normal_rows([keyed(0, 1, c, "noise") for c in (2, 5)], 9)
    assert torch.equal(rows[0], flat)
    assert torch.equal(rows[1], keyed(0, 1, 5, "noise").normal(9))


def test_words_fill_all_bits() -> None:
    for source in (keyed(0, 1, 2, "noise"), system()):
        bits = np.unpackbits(source.words(20_000).view(np.uint8)).reshape(-1, 64)
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)
