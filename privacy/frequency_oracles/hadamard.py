"""Hadamard response (Acharya, Sun & Zhang, AISTATS 2019, arXiv:1802.04705), for small ε.

    B = the least power of two above D; H the B × B Hadamard matrix, H[a, y] = (−1)^{|a and y|}
    candidate number v has row v + 1 (row 0 is constant);  S_v = {y : H[v + 1, y] = +1}, half of all
    P[y | v] = 2e^ε/(B(e^ε + 1)) for y in S_v,  2/(B(e^ε + 1)) elsewhere;  P[y | ⊥] = 1/B

Claim. The two probabilities differ by the factor e^ε, and 1/B lies between them. ∎
A report supports all v with y in S_v: p = e^ε/(e^ε + 1), and q = 1/2, two rows agreeing in half of
all y. The supports of n reports are one fast Walsh-Hadamard transform of their histogram.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle
from privacy.frequency_oracles.coins import Coins, flips


class Hadamard(Oracle):
    """A report is y."""

    name = "hadamard"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        self.order = 1 << self.size.bit_length()
        self.p, self.q = 1 / (1 + math.exp(-epsilon)), 0.5

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        row = self.places(values) + 1  # ⊥ has row 0
        y = coins.below(len(values), self.order)
        # The parity of row and y that the report shall have: even with probability p.
        wanted = flips(coins, len(values), self.p * math.exp(-self.epsilon))
        flip: np.ndarray = (_parity(row & y) != wanted) & (row != OUT + 1)
        # Flipping the lowest bit of the row in y flips the parity, one to one.
        flipped: np.ndarray = np.where(flip, y ^ (row & -row), y)
        return flipped

    def supports(self, reports: np.ndarray) -> np.ndarray:
        transformed = transform(np.bincount(reports, minlength=self.order))
        counts: np.ndarray = (len(reports) + transformed[1 : self.size + 1]) // 2
        return counts

    @property
    def report_bits(self) -> float:
        return float(self.order.bit_length() - 1)

    def pmf(self) -> np.ndarray:
        self.check_enumerable(self.order)
        hit = self.outcomes().T
        law = np.where(hit, self.p, self.p * math.exp(-self.epsilon)) * 2 / self.order
        law = np.concatenate([law, np.full((1, self.order), 1 / self.order)])
        return self.with_silence(law)

    def outcomes(self) -> np.ndarray:
        y, rows = np.arange(self.order)[:, None], np.arange(1, self.size + 1)
        return ~_parity(rows & y)


def transform(values: np.ndarray) -> np.ndarray:
    """Return H @ values, for a power of two of them.

    Example:
        >>> transform(np.array([1, 2, 3, 4])).tolist()
        [10, -2, -4, 0]
    """
    values, half = values.copy(), 1
    while half < len(values):
        pairs = values.reshape(-1, 2, half)
        pairs[:] = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return values


def _parity(x: np.ndarray) -> np.ndarray:
    """Return whether an odd number of bits is set."""
    odd: np.ndarray = np.bitwise_count(x) % 2 == 1
    return odd
