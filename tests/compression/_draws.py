"""A generator whose draws are given."""

from __future__ import annotations

import numpy as np


class Draws:
    """Stands for a NumPy generator."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.values)
        return self.values


def coded(floats: list[float], octets: list[int], dtype: str = "<f8") -> list[int]:
    """Return what a message holds: numbers, then bytes."""
    return [*np.array(floats, dtype).tobytes(), *octets]


def means(codec, vector: np.ndarray, draws: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Return the means over many encodings of what is decoded, and of ‖Q(v) − v‖²."""
    rng = np.random.default_rng(seed)
    total, error = np.zeros(len(vector)), 0.0
    for _ in range(draws):
        decoded = codec.decode(codec.encode(vector, rng), len(vector), vector.dtype)
        total += decoded
        error += float(np.square(decoded - vector).sum())
    return total / draws, error / draws


def hoeffding(width: np.ndarray | float, draws: int, count: int = 1, chance: float = 1e-9) -> float:
    """Return how far means of draws from intervals of a width are from what they estimate.

    All of `count` of them, but for a chance of `chance`: 2 exp(−2 n t² / width²) ≤ chance / count.
    """
    return float(np.max(width)) * float(np.sqrt(np.log(2 * count / chance) / (2 * draws)))
