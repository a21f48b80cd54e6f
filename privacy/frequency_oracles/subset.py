"""Subset selection (Ye & Barg 2018, arXiv:1702.00610; Wang et al. 2016, arXiv:1607.08025).

    over the K = D + 1 symbols D candidates and ⊥: a report is a set of ω of them
    with probability p = ωe^ε/(ωe^ε + K − ω) the value and ω − 1 others, else ω others; uniformly
    q = p(ω−1)/(K−1) + (1−p)ω/(K−1)

Claim. A set with the value has probability p / C(K−1, ω−1), one without (1−p) / C(K−1, ω); their
ratio is p(K−ω)/((1−p)ω) = e^ε. ∎
ω is that of least variance, about K/(e^ε + 1). ω = 1 is k-ary randomised response.

ω others are drawn by Floyd's algorithm (Bentley & Floyd, CACM 30(9), 1987): for j = K−1−ω..K−2, one
of 0..j, or j itself where that one is in the set. With probability p, the value takes the place of
one of them, a uniform draw: what is left is a uniform set of ω − 1.

The sum of many reports: symbol by symbol, of the users of one value who have r symbols to choose
from j that are still to come, Bin(·, r/j) choose the next: sampling without replacement.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, bits_of
from privacy.frequency_oracles.coins import Coins, flips

_BLOCK = 2**21
_SLOWER = 8
"""A binomial takes so many times as long as one of a report's symbols."""


class Subset(Oracle):
    """A report is a set of symbols, int64 `[ω]`."""

    name = "subset"

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        super().__init__(epsilon, candidates)
        symbols = self.size + 1
        near = symbols / (math.exp(epsilon) + 1)
        tried = {max(1, min(symbols - 1, w)) for w in (math.floor(near), math.ceil(near))}

        def cost(w: int) -> float:
            p, q = _chances(epsilon, symbols, w)
            return q * (1 - q) / (p - q) ** 2

        self.omega = min(sorted(tried), key=cost)
        self.p, self.q = _chances(epsilon, symbols, self.omega)
        self.left = self.p * (symbols / self.omega - 1) * math.exp(-epsilon)  # 1 − p

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        places = self.places(values)
        places[places == OUT] = self.size
        sets = np.empty((self.omega, len(values)), np.int64)
        for start in range(0, len(values), step := max(1, _BLOCK // self.size)):
            own, some = places[start : start + step], sets[:, start : start + step]
            inside = np.zeros(len(own) * self.size, bool)
            row = np.arange(len(own)) * self.size
            for at, last in enumerate(range(self.size - self.omega, self.size)):
                drawn = coins.below(len(own), last + 1)
                some[at] = np.where(inside[row + drawn], last, drawn)
                inside[row + some[at]] = True
            some += some >= own  # numbers of the others, of which the value is none
            place = coins.below(len(own), self.omega), np.arange(len(own))
            some[place] = np.where(flips(coins, len(own), self.left), some[place], own)
        return sets.T

    def supports(self, reports: np.ndarray) -> np.ndarray:
        return np.bincount(reports.reshape(-1), minlength=self.size + 1)[: self.size]

    def total(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        held, symbols = self.histogram(values), self.size + 1
        if len(values) < _SLOWER * symbols**2:
            return super().total(values, coins)
        taken = held - coins.binomial(held, self.left)
        # left[v, r]: users of value v who have r symbols to choose still, of those to come.
        left = np.zeros((symbols, self.omega + 1), np.int64)
        left[:, self.omega], left[:, self.omega - 1] = held - taken, taken
        total, to_choose = taken.copy(), np.arange(self.omega + 1)
        for symbol in range(symbols):
            others = np.arange(symbols) != symbol  # whose own symbol is settled
            to_come = symbols - symbol - (np.arange(symbols) >= symbol)
            chance = to_choose / np.maximum(to_come, 1)[:, None]
            chosen = coins.binomial(left, np.minimum(chance, 1.0) * others[:, None])
            total[symbol] += chosen.sum()
            left[:, :-1] += chosen[:, 1:]
            left -= chosen
        sums: np.ndarray = total[: self.size]
        return sums

    @property
    def report_bits(self) -> float:
        return bits_of(math.comb(self.size + 1, self.omega))

    def _sets(self) -> np.ndarray:
        """Return all reports as bits, bool `[sets, D + 1]`."""
        symbols = self.size + 1
        self.check_enumerable(math.comb(symbols, self.omega))
        sets = np.array(list(itertools.combinations(range(symbols), self.omega)))
        bits = np.zeros((len(sets), symbols), bool)
        bits[np.arange(len(sets))[:, None], sets] = True
        return bits

    def pmf(self) -> np.ndarray:
        symbols, w = self.size + 1, self.omega
        inside = self.p / math.comb(symbols - 1, w - 1)
        outside = self.left / math.comb(symbols - 1, w)
        return self.with_silence(np.where(self._sets().T, inside, outside))

    def outcomes(self) -> np.ndarray:
        return self._sets()[:, : self.size]


def _chances(epsilon: float, symbols: int, w: int) -> tuple[float, float]:
    p = w / (w + (symbols - w) * math.exp(-epsilon))
    return p, (p * (w - 1) + (1 - p) * w) / (symbols - 1)
