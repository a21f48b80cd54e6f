"""Optimised local hashing (Wang, Blocki, Li & Jha 2017, arXiv:1705.04421).

    each user draws a hash function h from a large family, and reports (h, y):
    y = h(v) with probability p = e^ε/(e^ε + g − 1), else another of the g hash values;  g = ⌊e^ε⌋+1
    a report supports every candidate that h takes to y, others' with probability q = 1/g

Claim. h is drawn apart from the value; given h, y is k-ary randomised response on g symbols. What a
user holds is hashed as it is, a candidate or not: ⊥ needs no symbol. ∎

h is splitmix64's finaliser on (value xor seed), reduced to [0, g) by a multiplication. Each user
has a seed of 64 bits: a pool of 200 shared ones would double the variance.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.frequency_oracles.base import Oracle
from privacy.frequency_oracles.coins import Coins, flips

_SEEDS = 64
"""Hash functions that `pmf` goes through; given any, the law is randomised response."""
_BLOCK = 2**15
"""Hash values at once: they stay in a core's cache."""


class OLH(Oracle):
    """A report is (seed, hash value), uint64 `[2]`."""

    name = "olh"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        self.g = math.floor(math.exp(min(epsilon, 20.0))) + 1
        self.p = 1 / (1 + (self.g - 1) * math.exp(-epsilon))
        self.q = 1 / self.g

    def hashed(self, seeds: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return h_seed(value), uint64, elementwise."""
        x = _mix(_mix(values.astype(np.uint64)) ^ seeds)
        x >>= np.uint64(32)
        x *= np.uint64(self.g)
        x >>= np.uint64(32)
        return x

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        seeds = coins.words(len(values))
        true = self.hashed(seeds, np.asarray(values, np.int64))
        others = coins.below(len(values), self.g - 1).astype(np.uint64)
        others += (others >= true).astype(np.uint64)
        another = flips(coins, len(values), self.p * (self.g - 1) * math.exp(-self.epsilon))
        return np.stack([seeds, np.where(another, others, true)], axis=1)

    def supports(self, reports: np.ndarray) -> np.ndarray:
        counts = np.zeros(self.size, np.int64)
        for start in range(0, len(reports), step := max(1, _BLOCK // self.size)):
            seeds, y = reports[start : start + step, 0], reports[start : start + step, 1]
            hashed = self.hashed(seeds[:, None], self.candidates[None, :])
            counts += (hashed == y[:, None]).sum(axis=0)
        return counts

    @property
    def report_bits(self) -> float:
        return 64 + math.ceil(math.log2(self.g))

    def _hashes(self) -> np.ndarray:
        """Return hash values of all candidates and of one value more, `[seeds, D + 1]`."""
        seeds = _mix(np.arange(1, _SEEDS + 1, dtype=np.uint64))
        values = np.append(self.candidates, self.candidates.max() + 1)
        return self.hashed(seeds[:, None], values[None, :])

    def pmf(self) -> np.ndarray:
        self.check_enumerable(_SEEDS * self.g)
        hit = self._hashes()[:, :, None] == np.arange(self.g, dtype=np.uint64)
        other = self.p * math.exp(-self.epsilon)
        law = np.where(hit, self.p, other) / _SEEDS
        return self.with_silence(law.transpose(1, 0, 2).reshape(self.size + 1, -1))

    def outcomes(self) -> np.ndarray:
        hit = self._hashes()[:, : self.size, None] == np.arange(self.g, dtype=np.uint64)
        supported: np.ndarray = hit.transpose(0, 2, 1).reshape(-1, self.size)
        return supported


def _mix(x: np.ndarray) -> np.ndarray:
    """Return splitmix64's finaliser."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
