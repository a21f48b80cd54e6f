"""Whole numbers of b bits each, laid end to end in bytes.

Number i takes the bits i·b to (i+1)·b − 1, lowest first; of the last byte, what is left is zero.
n numbers take ceil(n·b / 8) bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MOST = 32
"""Bits of a number."""

_PIECE = 2**16
"""Numbers that are handled at a time, so that what is made of them stays in the cache; a multiple
of 8, so that each piece begins with a byte."""


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes some numbers take."""
    return -(-count * bits // 8)


def pack(values_n: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers in [0, 2^bits) as bytes, uint8.

    Example:
        >>> pack(np.array([1, 2, 3]), 4).tolist()
        [33, 3]
    """
    packed = np.empty(packed_bytes(len(values_n), bits), np.uint8)
    for numbers, place in _pieces(len(values_n), bits):
        octets = np.ascontiguousarray(values_n[numbers], dtype="<u4").view(np.uint8)
        bits_nb = np.unpackbits(octets.reshape(-1, 4), axis=1, count=bits, bitorder="little")
        packed[place] = np.packbits(bits_nb, bitorder="little")
    return packed


def unpack(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Return `count` numbers, uint32, of bytes of the right length.

    Raises:
        ValueError: A bit behind the last number is set.
    """
    values_n = np.empty(count, np.uint32)
    for numbers, place in _pieces(count, bits):
        found = values_n[numbers]
        flat = np.unpackbits(packed[place], bitorder="little")
        if flat[len(found) * bits :].any():
            raise ValueError("has a bit set behind the last number")
        octets = np.packbits(flat[: len(found) * bits].reshape(-1, bits), axis=1, bitorder="little")
        whole = np.zeros((len(found), 4), np.uint8)
        whole[:, : octets.shape[1]] = octets
        found[:] = whole.view("<u4")[:, 0]
    return values_n


def _pieces(count: int, bits: int) -> Iterator[tuple[slice, slice]]:
    """Yield which numbers lie in which bytes, a piece at a time."""
    for start in range(0, count, _PIECE):
        stop = min(count, start + _PIECE)
        yield slice(start, stop), slice(start * bits // 8, packed_bytes(stop, bits))
