"""QSGD: by hand, unbiased, and of the variance of Lemma 3.1 of arXiv:1610.02132."""

import numpy as np
import pytest

from fedsim.compression.qsgd import QSGD
from tests.compression._draws import Draws, coded, hoeffding, means

RNG = np.random.default_rng(7)
VECTORS = {
    "normal": RNG.normal(size=60),
    "heavy": RNG.standard_t(1.2, size=60),
    "sparse": np.where(np.arange(60) % 20 == 0, RNG.normal(size=60), 0.0),
    "flat": np.full(60, -0.3),
    "one": np.eye(60)[3],
    "tiny": RNG.normal(size=60) * 1e-300,
    "huge": RNG.normal(size=60) * 1e300,
}


def test_by_hand() -> None:
    v = np.array([3.0, -4.0, 0.0, 12.0])  # of norm 13
    codec = QSGD(levels=13, bucket=None)  # 5 bits: 3, 4 with the sign 16, 0, 12
    code = codec.encode(v, Draws(0.9, 0.9, 0.9, 0.9))
    assert code.tolist() == coded([13.0], [0x83, 0x02, 0x06])
    assert codec.decode(code, 4, v.dtype).tolist() == v.tolist()


def test_rounding_by_hand() -> None:
    codec = QSGD(levels=2, bucket=None)  # of (3, -4) / 5 · 2, 1.2 and 1.6 are left to chance
    for draws, decoded in (((0.19, 0.61), [5.0, -2.5]), ((0.21, 0.59), [2.5, -5.0])):
        code = codec.encode(np.array([3.0, -4.0]), Draws(*draws))
        assert codec.decode(code, 2, np.dtype("f8")).tolist() == decoded
    # levels 2 and -1: 2 + (4 + 1)·2^3 in 3 bits each
    code = codec.encode(np.array([3.0, -4.0]), Draws(0.19, 0.61))
    assert code.tolist() == coded([5.0], [2 + (5 << 3)])


def test_each_bucket_has_its_own_norm() -> None:
    v = np.array([3.0, 4.0, -6.0, 8.0, 0.5], np.float32)
    codec = QSGD(levels=5, bucket=2)
    code = codec.encode(v, Draws(*[0.5] * 5))
    assert codec.decode(code, 5, v.dtype).tolist() == v.tolist()
    assert code[:12].view("<f4").tolist() == [5.0, 10.0, 0.5]
    assert len(code) == codec.size(5, v.dtype) == 3 * 4 + 3  # 5 numbers of 4 bits


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("name", ["normal", "heavy", "sparse", "flat"])
def test_the_mean_is_the_vector(name: str, levels: int) -> None:
    """By Hoeffding: a number that is decoded is one of two, ‖v‖/s apart."""
    v, draws = VECTORS[name], 1000
    codec = QSGD(levels=levels, bucket=20)
    mean, error = means(codec, v, draws)
    norms = np.repeat(np.linalg.norm(v.reshape(3, 20), axis=1), 20)
    assert (np.abs(mean - v) <= hoeffding(1.0, draws, len(v)) * norms / levels).all()
    p = np.abs(v) / norms * levels % 1
    exact = float((np.square(norms / levels) * p * (1 - p)).sum())
    worst = float((np.square(norms / levels) * np.maximum(p, 1 - p) ** 2).sum())
    assert abs(error - exact) <= hoeffding(worst, draws)


@pytest.mark.parametrize("levels", [1, 2, 4, 7, 16, 100])
@pytest.mark.parametrize("name", VECTORS)
def test_the_variance_is_below_the_papers(name: str, levels: int) -> None:
    """The exact variance, by the codec's own levels: the two ways a number may go, by chance."""
    v = VECTORS[name] / (np.abs(VECTORS[name]).max() or 1)  # else a square would overflow
    codec, n = QSGD(levels=levels, bucket=None), len(v)
    up, down = (
        codec.decode(codec.encode(v, Draws(*[u] * n)), n, v.dtype) for u in (0.0, 1 - 2**-53)
    )
    assert (np.abs(down) <= np.abs(v) * (1 + 1e-12)).all()
    assert (np.abs(v) <= np.abs(up) * (1 + 1e-12)).all()
    variance = float(((up - v) * (v - down)).sum())  # p (1 − p) (up − down)², with p from v
    bound = min(n / levels**2, np.sqrt(n) / levels) * float(v @ v)
    assert -1e-12 <= variance <= bound * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", VECTORS)
def test_no_number_is_above_the_norm(name: str, dtype: type) -> None:
    """So that no level is above s, in float32 too, where the norm is rounded."""
    close = np.full(512, 1e-6, dtype)
    close[7] = 1.0  # whose norm is 1 and a little, which float32 rounds off
    whole = QSGD(levels=3, bucket=None)
    assert whole.decode(whole.encode(close, Draws(*[0.0] * 512)), 512, close.dtype).max() <= 1.001
    with np.errstate(over="ignore"):
        v = VECTORS[name].astype(dtype)
    v = v[np.isfinite(v)]
    codec = QSGD(levels=1, bucket=1)  # each number is its bucket's norm
    assert codec.decode(codec.encode(v, Draws(*[0.0] * len(v))), len(v), v.dtype).tolist() == list(
        v
    )


def test_a_bad_level_and_a_negative_norm_are_refused() -> None:
    codec = QSGD(levels=2, bucket=None)
    good = codec.encode(np.array([3.0, -4.0]), Draws(0.5, 0.5))
    bad = good.copy()
    bad[8] = 3  # level 3 of 2
    with pytest.raises(ValueError, match="level above 2"):
        codec.decode(bad, 2, np.dtype("f8"))
    bad = good.copy()
    bad[7] |= 0x80
    with pytest.raises(ValueError, match="negative norm"):
        codec.decode(bad, 2, np.dtype("f8"))
