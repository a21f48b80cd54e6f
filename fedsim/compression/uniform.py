"""Stochastic uniform quantisation (Suresh et al. 2017, arXiv:1611.00429, Section 2.2, "k-level").

    Q(v)_i = lo + (hi − lo) · l/s or (l+1)/s,  at random with  E Q(v)_i = v_i,    s = 2^b − 1

lo and hi are the least and the largest number of each bucket of d. E Q(v) = v, and
E ‖Q(v) − v‖² ≤ d (hi − lo)² / (4 s²) ≤ d ‖v‖² / (2 s²) (Lemma 5 and Theorem 2 there).

    bytes of P numbers  =  ceil(P/d) · 2 · (4 or 8)  +  ceil(P · b / 8)

Of numbers that are alike in size, hi − lo is some 6 standard deviations and the norm √d: with the
same bits, the error is far below that of rounding against the norm. Of a few large ones among many
near zero, the latter rounds most to zero at next to no error.

Shapes: P numbers in Q buckets.

Differs from the paper: buckets, of which it has one; without its random rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.compression.base import Codec
from fedsim.compression.bits import MOST, pack, packed_bytes, unpack
from fedsim.compression.buckets import Buckets, stochastic
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Uniform(Codec):
    """Stochastic rounding to levels between the least and the largest number of a bucket.

    Attributes:
        bits: b of each number.
        bucket: d; null for the whole update.
    """

    bits: Annotated[int, Range(ge=1, le=MOST)] = 4
    bucket: Annotated[int, Range(ge=1)] | None = 512

    @property
    def levels(self) -> int:
        """s, the number of steps from lo to hi."""
        return (1 << self.bits) - 1

    def size(self, count: int, dtype: np.dtype) -> int:
        """See `Codec.size`."""
        ends = 2 * len(Buckets(count, self.bucket))
        return ends * dtype.itemsize + packed_bytes(count, self.bits)

    def encode(self, update_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Codec.encode`."""
        buckets = Buckets(len(update_P), self.bucket)
        ends_2Q = np.stack([buckets.reduce(by, update_P) for by in (np.minimum, np.maximum)])
        low_P, high_P = (buckets.spread(end_Q) for end_Q in ends_2Q.astype(np.float64))
        with np.errstate(invalid="ignore", over="ignore"):
            range_P, above_P = high_P - low_P, update_P - low_P
        some_P = np.isfinite(range_P) & (range_P > 0)
        share_P = np.divide(above_P, range_P, out=np.zeros_like(range_P), where=some_P)
        level_P = stochastic(share_P * self.levels, rng)
        return np.concatenate([ends_2Q.ravel().view(np.uint8), pack(level_P, self.bits)])

    def decode(self, code_B: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
        """See `Codec.decode`."""
        buckets = Buckets(count, self.bucket)
        head = 2 * len(buckets) * dtype.itemsize
        ends_2Q = code_B[:head].copy().view(dtype).reshape(2, len(buckets))
        if (ends_2Q[0] > ends_2Q[1]).any():
            raise ValueError("has a least number above the largest")
        share_P = unpack(code_B[head:], count, self.bits) / self.levels
        with np.errstate(invalid="ignore", over="ignore"):  # of ends that are not finite
            low_P, high_P = (buckets.spread(end_Q) for end_Q in ends_2Q.astype(np.float64))
            values_P: np.ndarray = (low_P + (high_P - low_P) * share_P).astype(dtype)
        return values_P
