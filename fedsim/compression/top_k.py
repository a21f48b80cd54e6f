"""Top-k: the k largest numbers of an update (Stich et al. 2018, arXiv:1809.07599), and feedback.

    C(v)_i = v_i  if |v_i| is among the k largest,  else 0;      ‖v − C(v)‖² ≤ (1 − k/P) ‖v‖²

    feedback:  v = u + e;  send C(v);  e ← v − C(v)     (Karimireddy et al. 2019, arXiv:1901.09847,
                                                         Algorithm 1 and 2, "EF-SGD")

C is biased: without feedback, the mean of several clients' C(u_k) may be zero where that of their
u_k is not, and training stops there (Beznosikov et al. 2020, arXiv:2002.12410, Example 1). With
feedback, what was left out comes later; the sum of all that was sent differs from that of all
updates by e alone.

A place takes ceil(log2 P) bits, a number what the model's do: bytes = k·(4 or 8) + ceil(k·b / 8).

Differs from the papers: u is the whole update of a client's local steps, times no learning rate;
e is kept over the rounds that a client does not take part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.compression.base import Codec
from fedsim.compression.bits import pack, packed_bytes, unpack
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """The largest numbers of an update, and where they are.

    Attributes:
        share: k / P, rounded to whole numbers, at least one.
        error_feedback: Whether clients keep what is left out, and add it to their next update.
    """

    share: Annotated[float, Range(gt=0, le=1)] = 0.05
    error_feedback: bool = True

    @property
    def remembers(self) -> bool:
        """See `Codec.remembers`."""
        return self.error_feedback

    def kept(self, count: int) -> int:
        """Return k."""
        return min(count, max(1, round(self.share * count)))

    def size(self, count: int, dtype: np.dtype) -> int:
        """See `Codec.size`."""
        k = self.kept(count)
        return k * dtype.itemsize + packed_bytes(k, _place_bits(count))

    def encode(self, update_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Codec.encode`; of equal sizes, the first are kept."""
        count = len(update_P)
        place_k = largest(np.abs(update_P), self.kept(count))
        values_k = np.ascontiguousarray(update_P[place_k])
        return np.concatenate([values_k.view(np.uint8), pack(place_k, _place_bits(count))])

    def decode(self, code_B: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
        """See `Codec.decode`."""
        k = self.kept(count)
        place_k = unpack(code_B[k * dtype.itemsize :], k, _place_bits(count)).astype(np.int64)
        if k and (place_k[-1] >= count or (np.diff(place_k) <= 0).any()):
            raise ValueError(f"has places that do not ascend, or not below {count}")
        update_P = np.zeros(count, dtype)
        update_P[place_k] = code_B[: k * dtype.itemsize].copy().view(dtype)
        return update_P


def largest(size_P: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k largest numbers, ascending; NaN is larger than any."""
    if k >= len(size_P):
        return np.arange(len(size_P))
    size_P = np.where(np.isnan(size_P), np.inf, size_P)
    bound = np.partition(size_P, len(size_P) - k)[len(size_P) - k]
    above = np.flatnonzero(size_P > bound)
    equal = np.flatnonzero(size_P == bound)[: k - len(above)]
    places: np.ndarray = np.sort(np.concatenate([above, equal]))
    return places


def _place_bits(count: int) -> int:
    return max(1, (count - 1).bit_length())
