"""Top-k: by hand, and the contraction of arXiv:1809.07599, Lemma A.1."""

import numpy as np
import pytest

from fedsim.compression.top_k import TopK, largest
from tests.compression._draws import Draws, coded


def test_by_hand() -> None:
    v = np.array([1.0, -5.0, 2.0, 4.0, -4.0, 0.0])  # of the two of size 4, the first
    codec = TopK(share=1 / 3)
    code = codec.encode(v, Draws())
    assert code.tolist() == coded([-5.0, 4.0], [1 + (3 << 3)])  # places 1 and 3 in 3 bits each
    assert codec.decode(code, 6, v.dtype).tolist() == [0.0, -5.0, 0.0, 4.0, 0.0, 0.0]
    assert len(code) == codec.size(6, v.dtype) == 17


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_it_contracts(count: int, share: float) -> None:
    rng, codec = np.random.default_rng(count), TopK(share=share)
    k = codec.kept(count)
    assert k == max(1, round(share * count))
    vectors = [rng.normal(size=count), rng.standard_t(1, size=count), rng.integers(-2, 3, count)]
    for v in (*vectors, np.ones(count), np.zeros(count)):
        v = v.astype(np.float64)
        kept = codec.decode(codec.encode(v, Draws()), count, v.dtype)
        lost, whole = float(np.square(v - kept).sum()), float(v @ v)
        assert lost <= (1 - k / count) * whole * (1 + 1e-12)
        assert np.count_nonzero(kept) <= k
        assert sorted(np.abs(v), reverse=True)[:k] == sorted(np.abs(kept), reverse=True)[:k]
    assert lost == 0
    flat = np.ones(count)  # the bound is reached
    kept = codec.decode(codec.encode(flat, Draws()), count, flat.dtype)
    assert float(np.square(flat - kept).sum()) == pytest.approx((1 - k / count) * count)


def test_what_is_not_a_number_is_among_the_largest() -> None:
    assert largest(np.array([1.0, np.nan, np.inf, 2.0]), 2).tolist() == [1, 2]
    assert largest(np.array([np.nan, 1.0, 5.0]), 1).tolist() == [0]


@pytest.mark.parametrize("places", [[3, 1], [2, 2], [1, 7]])
def test_places_that_do_not_ascend_or_are_none_are_refused(places: list[int]) -> None:
    bad = np.array(coded([1.0, 1.0], [places[0] + (places[1] << 3)]), np.uint8)
    with pytest.raises(ValueError, match="do not ascend"):
        TopK(share=1 / 3).decode(bad, 6, np.dtype("f8"))
