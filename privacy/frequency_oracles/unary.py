"""Unary encodings: optimised (OUE), and symmetric (SUE), which is basic RAPPOR.

Wang et al. 2017 (arXiv:1705.04421); Erlingsson, Pihur & Korolova 2014 (arXiv:1407.6981).

    a value is the unit vector e_v of D bits, ⊥ the zero vector; each bit is reported by itself:
    P[1 | 1] = p,  P[1 | 0] = q
    OUE:  p = 1/2,                      q = 1/(e^ε + 1)
    SUE:  p = e^{ε/2}/(e^{ε/2} + 1),    q = 1 − p

Claim. Two candidates' vectors differ in two bits, a candidate's and ⊥'s in one. One bit's ratios:
p/q and (1−q)/(1−p). OUE: (e^ε + 1)/2 and 2e^ε/(e^ε + 1), each <= e^ε, and their product e^ε.
SUE: e^{ε/2} each. ∎

The sum of n reports: bits are independent, so C_v = Bin(n_v, p) + Bin(n − n_v, q), independent.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, column_counts
from privacy.frequency_oracles.coins import Coins, flips


class Unary(Oracle):
    """A report is D bits, bool `[D]`.

    Attributes:
        missed: P[0 | 1] = 1 − p, which a float tells from 0 where p is as good as 1.
    """

    missed: float

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        places = self.places(values)
        bits = flips(coins, (len(values), self.size), self.q)
        one = ~flips(coins, len(values), self.missed)
        rows = np.flatnonzero(places != OUT)
        bits[rows, places[rows]] = one[rows]
        return bits

    def supports(self, reports: np.ndarray) -> np.ndarray:
        return column_counts(reports)

    def total(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        held = self.histogram(values)[: self.size]
        told = held - coins.binomial(held, self.missed)
        total: np.ndarray = told + coins.binomial(len(values) - held, self.q)
        return total

    @property
    def report_bits(self) -> float:
        return float(self.size)

    def pmf(self) -> np.ndarray:
        self.check_enumerable(2.0**self.size)
        y, v = self.outcomes(), np.eye(self.size + 1, dtype=bool)[:, : self.size]
        one = np.where(v[:, None, :], self.p, self.q)
        zero = np.where(v[:, None, :], self.missed, 1 - self.q)
        law: np.ndarray = np.where(y, one, zero).prod(axis=2)
        return self.with_silence(law)

    def outcomes(self) -> np.ndarray:
        codes = np.arange(2**self.size)
        bits: np.ndarray = (codes[:, None] >> np.arange(self.size)) & 1 == 1
        return bits


class OUE(Unary):
    """Optimised: the bit that is set costs nothing, those that are not are many."""

    name = "oue"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        self.p, self.q, self.missed = 0.5, 1 / (math.exp(epsilon) + 1), 0.5


class SUE(Unary):
    """Symmetric."""

    name = "sue"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        self.p = 1 / (1 + math.exp(-epsilon / 2))
        self.q = self.missed = self.p * math.exp(-epsilon / 2)
