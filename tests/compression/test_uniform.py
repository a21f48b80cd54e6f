"""Stochastic uniform quantisation: by hand, unbiased, and of the error of arXiv:1611.00429."""

import numpy as np
import pytest

from fedsim.compression.uniform import Uniform
from tests.compression._draws import Draws, coded, hoeffding, means


def test_by_hand() -> None:
    v = np.array([-1.0, 2.0, 0.5, 0.0])  # of -1 .. 2 in 3 steps: 0, 3, 1.5, 1
    codec = Uniform(bits=2, bucket=None)
    for draw, level in ((0.4, 2), (0.6, 1)):
        code = codec.encode(v, Draws(0.9, 0.9, draw, 0.9))
        assert code.tolist() == coded([-1.0, 2.0], [0 + (3 << 2) + (level << 4) + (1 << 6)])
        assert codec.decode(code, 4, v.dtype).tolist() == [-1.0, 2.0, -1.0 + level, 0.0]


def test_all_least_numbers_come_before_all_largest() -> None:
    v = np.array([1, 2, 5, 9, 7], np.float32)
    codec = Uniform(bits=1, bucket=2)
    code = codec.encode(v, Draws(*[0.5] * 5))
    assert code[:24].view("<f4").tolist() == [1, 5, 7, 2, 9, 7]
    assert codec.decode(code, 5, v.dtype).tolist() == v.tolist()
    assert len(code) == codec.size(5, v.dtype) == 25


@pytest.mark.parametrize("bits", [1, 3])
def test_the_mean_is_the_vector_and_the_error_below_the_papers(bits: int) -> None:
    rng, draws, d = np.random.default_rng(3), 1000, 20
    codec = Uniform(bits=bits, bucket=d)
    for v in (rng.normal(size=3 * d), rng.standard_t(1.2, size=3 * d), rng.random(3 * d) + 9):
        rows = v.reshape(3, d)
        span = rows.max(1) - rows.min(1)
        step = np.repeat(span, d) / codec.levels
        mean, error = means(codec, v, draws)
        assert (np.abs(mean - v) <= hoeffding(1.0, draws, len(v)) * step).all()
        p = (v - np.repeat(rows.min(1), d)) / step % 1
        exact = float((np.square(step) * p * (1 - p)).sum())
        worst = float((np.square(step) * np.maximum(p, 1 - p) ** 2).sum())
        assert abs(error - exact) <= hoeffding(worst, draws)
        bound = d * float(np.square(span).sum()) / (4 * codec.levels**2)
        assert exact <= bound * (1 + 1e-12)
        assert bound <= d * float(v @ v) / (2 * codec.levels**2) * (1 + 1e-12)


def test_a_least_number_above_the_largest_is_refused() -> None:
    codec = Uniform(bits=1, bucket=None)
    bad = np.array(coded([2.0, 1.0], [0]), np.uint8)
    with pytest.raises(ValueError, match="least number above"):
        codec.decode(bad, 2, np.dtype("f8"))
