"""QSGD: stochastic rounding against the norm (Alistarh et al. 2017, arXiv:1610.02132, Section 3.1).

    Q(v)_i = ‖v‖ · sgn(v_i) · ξ_i,    ξ_i = l/s or (l+1)/s  with  E ξ_i = |v_i| / ‖v‖,  0 ≤ l < s

of each bucket v of d numbers by itself. E Q(v) = v, and E ‖Q(v) − v‖² ≤ min(d/s², √d/s) ‖v‖²
(Lemma 3.1). A run of s levels takes ceil(log2(s+1)) + 1 bits a number, and a bucket its norm:

    bytes of P numbers  =  ceil(P/d) · (4 or 8)  +  ceil(P · (ceil(log2(s+1)) + 1) / 8)

d = 512 and s = 15 are 5 bits and 1/16 of one for the norm. With larger d and the same s more of a
vector is rounded to zero.

Shapes: P numbers in Q buckets.

Differs from the paper: levels are sent in as many bits as the largest takes, not in Elias' code,
whose length depends on the values. The norm is sent in the update's precision; rounding to it is
monotone, so that no |v_i| exceeds it, and the mean is exact with the norm that was sent.
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
class QSGD(Codec):
    """Stochastic rounding to levels between 0 and the norm of a bucket.

    Attributes:
        levels: s; 1 leaves a sign or nothing of each number.
        bucket: d; null for the whole update.
    """

    levels: Annotated[int, Range(ge=1, lt=2 ** (MOST - 1))] = 15
    bucket: Annotated[int, Range(ge=1)] | None = 512

    @property
    def bits(self) -> int:
        """Bits of one number: its sign's, then its level's."""
        return 1 + self.levels.bit_length()

    def size(self, count: int, dtype: np.dtype) -> int:
        """See `Codec.size`."""
        norms = len(Buckets(count, self.bucket))
        return norms * dtype.itemsize + packed_bytes(count, self.bits)

    def encode(self, update_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Codec.encode`."""
        buckets = Buckets(len(update_P), self.bucket)
        size_P = np.abs(update_P, dtype=np.float64)
        norm_Q = _norms(size_P, buckets, update_P.dtype)
        norm_P = buckets.spread(norm_Q.astype(np.float64))
        some_P = np.isfinite(norm_P) & (norm_P > 0)
        share_P = np.divide(size_P, norm_P, out=np.zeros_like(size_P), where=some_P)
        level_P = stochastic(share_P * self.levels, rng)
        sign_P = (update_P < 0).astype(np.uint32) << (self.bits - 1)
        return np.concatenate([norm_Q.view(np.uint8), pack(level_P | sign_P, self.bits)])

    def decode(self, code_B: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
        """See `Codec.decode`."""
        buckets = Buckets(count, self.bucket)
        head = len(buckets) * dtype.itemsize
        norm_Q = code_B[:head].copy().view(dtype)
        if (norm_Q < 0).any():
            raise ValueError("has a negative norm")
        code_P = unpack(code_B[head:], count, self.bits)
        level_P = code_P & ((1 << (self.bits - 1)) - 1)
        if (level_P > self.levels).any():
            raise ValueError(f"has a level above {self.levels}")
        negative_P = code_P >> (self.bits - 1) == 1
        with np.errstate(invalid="ignore"):  # of a norm that is not finite, no number is
            size_P = buckets.spread(norm_Q.astype(np.float64)) * (level_P / self.levels)
        values_P: np.ndarray = np.where(negative_P, -size_P, size_P).astype(dtype)
        return values_P


def _norms(size_P: np.ndarray, buckets: Buckets, dtype: np.dtype) -> np.ndarray:
    """Return the norms of buckets of absolute values, none below the largest of them, `[Q]`."""
    # Of the numbers over the largest: a square can neither overflow nor be lost.
    most_Q = buckets.reduce(np.maximum, size_P)
    most_P = buckets.spread(most_Q)
    with np.errstate(invalid="ignore", over="ignore"):
        share_P = np.divide(size_P, most_P, out=np.zeros_like(size_P), where=most_P != 0)
        norm_Q: np.ndarray = most_Q * np.sqrt(buckets.reduce(np.add, np.square(share_P)))
        return norm_Q.astype(dtype)
