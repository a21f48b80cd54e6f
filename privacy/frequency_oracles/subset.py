"""Subset selection (Ye & Barg 2018, arXiv:1702.00610; Wang et al. 2016, arXiv:1607.08025).

    over the K = D + 1 symbols D candidates and ⊥: a report is a set of ω of them
    with probability p = ωe^ε/(ωe^ε + K − ω) the value and ω − 1 others, else ω others; uniformly
    q = p(ω−1)/(K−1) + (1−p)ω/(K−1)

Claim. A set with the value has probability p / C(K−1, ω−1), one without (1−p) / C(K−1, ω); their
ratio is p(K−ω)/((1−p)ω) = e^ε. ∎
ω is that of least variance, about K/(e^ε + 1). ω = 1 is k-ary randomised response.

A report is a map of K bits. It is drawn in two steps that treat all other symbols alike: each is
taken with one chance, by itself, and all anew if they are too many; then one symbol after another
is drawn uniformly and taken (what is in the set stays there), until there are as many as shall be.
Hence sets of one number of other symbols are equally likely at every point, and in the end. The
value is kept in the set meanwhile; its own bit, of chance p, is put right last.

The sum of many reports: symbol by symbol, of the users of one value who have r symbols to choose
from j that are still to come, Bin(·, r/j) choose the next: sampling without replacement.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, bits_of, column_counts
from privacy.frequency_oracles.coins import Coins, flips

_WORD = 64
_DRAWN = _SUMMED = 2**22
"""Bits that are drawn, and summed, at a time."""
_SLOWER = 8
"""A binomial takes so many times as long as one of a report's symbols."""


class Subset(Oracle):
    """A report is a map of D + 1 bits, ⊥ last, of which ω are set; words of 64, uint64 `[W]`."""

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
        eighths = 8 * self.omega // symbols
        self._digits = [c == "1" for c in f"{eighths:03b}".rstrip("0")][::-1]
        self.left = self.p * (symbols / self.omega - 1) * math.exp(-epsilon)  # 1 − p

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        count, symbols = len(values), self.size + 1
        places = self.places(values)
        own = np.where(places == OUT, self.size, places)
        taken = ~flips(coins, count, self.left)
        wanted = self.omega + 1 - taken
        words = self._few(count, coins)
        flat, first = words.reshape(-1), np.arange(count) * words.shape[1]
        own_at, own_bit = first + (own >> 6), _bit(own)
        flat[own_at] |= own_bit
        rows = np.flatnonzero(_ones(words) > wanted)
        while len(rows):
            words[rows] &= _most((len(rows), words.shape[1]), coins)
            flat[own_at[rows]] |= own_bit[rows]
            rows = rows[_ones(words[rows]) > wanted[rows]]
        missing = wanted - _ones(words)
        rows = np.flatnonzero(missing > 0)
        first, missing = first[rows], missing[rows]
        while len(first):
            drawn = coins.below(len(first), symbols)
            at, bit = first + (drawn >> 6), _bit(drawn)
            old = flat.take(at)
            flat[at] = old | bit
            missing -= (old & bit) == 0
            rows = np.flatnonzero(missing > 0)
            first, missing = first.take(rows), missing.take(rows)
        flat[own_at] ^= own_bit * ~taken
        return words

    def _few(self, count: int, coins: Coins) -> np.ndarray:
        """Return maps whose bits are set each with the most eighths that are no more than ω/K.

        A bit is set where a random number is less; the two are compared from their last binary
        digits on.
        """
        symbols, width = self.size + 1, -(-(self.size + 1) // _WORD)
        shape = len(self._digits), count, width
        words = np.zeros((count, width), np.uint64)
        for one, drawn in zip(
            self._digits, coins.words(math.prod(shape)).reshape(shape), strict=True
        ):
            (np.bitwise_or if one else np.bitwise_and)(words, drawn, out=words)
        words[:, -1] &= np.uint64(2 ** (symbols - _WORD * (width - 1)) - 1)
        return words

    def supports(self, reports: np.ndarray) -> np.ndarray:
        counts = np.zeros(reports.shape[1] * _WORD, np.int64)
        for start in range(0, len(reports), step := max(1, _SUMMED // len(counts))):
            octets = reports[start : start + step].view(np.uint8)
            counts += column_counts(np.unpackbits(octets, axis=1, bitorder="little"))
        return counts[: self.size]

    def total(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        held, symbols = self.histogram(values), self.size + 1
        if len(values) < _SLOWER * symbols**2:
            drawn = np.zeros(self.size, np.int64)
            for start in range(0, len(values), step := max(1, _DRAWN // symbols)):
                drawn += super().total(values[start : start + step], coins)
            return drawn
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


def _most(shape: tuple[int, ...], coins: Coins) -> np.ndarray:
    """Return words whose bits are set with probability 7/8 each."""
    a, b, c = coins.words(3 * math.prod(shape)).reshape(3, *shape)
    words: np.ndarray = a | b | c
    return words


def _bit(symbols: np.ndarray) -> np.ndarray:
    """Return the bits of symbols in their words, uint64."""
    bits: np.ndarray = np.uint64(1) << (symbols & 63).astype(np.uint64)
    return bits


def _ones(words_NW: np.ndarray) -> np.ndarray:
    """Return how many bits of each row are set, int64 `[N]`."""
    ones_WN = np.bitwise_count(words_NW).T
    ones: np.ndarray = sum(ones_WN[1:], ones_WN[0].astype(np.int64))  # faster than along rows
    return ones


def _chances(epsilon: float, symbols: int, w: int) -> tuple[float, float]:
    p = w / (w + (symbols - w) * math.exp(-epsilon))
    return p, (p * (w - 1) + (1 - p) * w) / (symbols - 1)
