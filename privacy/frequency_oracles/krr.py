"""k-ary randomised response (Warner 1965; Kairouz, Bonawitz & Ramage 2016, arXiv:1602.07387).

    P[y | v] = e^ε/(e^ε + D)  if y = v,   1/(e^ε + D)  for each of the D other symbols

over the D + 1 symbols D candidates and ⊥. Every two probabilities of one report differ by a factor
of e^ε at most. A report supports itself. Least variance of all where D + 1 < 3e^ε + 2.

A report is, with probability µ = (D + 1)/(e^ε + D), uniform over all symbols, and otherwise the
value. So the sum of n of them is C = n_v − Bin(n_v, µ) + a uniform multinomial of the rest.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, bits_of
from privacy.frequency_oracles.coins import Coins, flips


class KRR(Oracle):
    """See this file's header. A report is a symbol: a candidate's place, or D for ⊥."""

    name = "krr"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        self.p = 1 / (1 + self.size * math.exp(-epsilon))
        self.q = self.p * math.exp(-epsilon)
        self.blurred = (self.size + 1) * self.q  # µ

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        symbols = self.places(values)
        symbols[symbols == OUT] = self.size
        anything = coins.below(len(values), self.size + 1)
        return np.where(flips(coins, len(values), self.blurred), anything, symbols)

    def supports(self, reports: np.ndarray) -> np.ndarray:
        return np.bincount(reports, minlength=self.size + 1)[: self.size]

    def total(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        held = self.histogram(values)
        kept = held - coins.binomial(held, self.blurred)
        others = coins.spread(len(values) - int(kept.sum()), self.size + 1)
        total: np.ndarray = (kept + others)[: self.size]
        return total

    @property
    def report_bits(self) -> float:
        return bits_of(self.size + 1)

    def pmf(self) -> np.ndarray:
        count = self.size + 1
        self.check_enumerable(count)
        return self.with_silence(np.where(np.eye(count, dtype=bool), self.p, self.q))

    def outcomes(self) -> np.ndarray:
        return np.eye(self.size + 1, dtype=bool)[:, : self.size]
