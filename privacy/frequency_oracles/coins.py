"""Where a randomised report's randomness comes from: a keyed generator, or the operating system's.

    keyed(seed, round, client, purpose)   NumPy's generator of `fedsim.seeds`, for simulation
    system()                              os.urandom: uniforms of 53 bits, nothing kept

What an oracle draws is said in terms of coins, binomials and multinomials, so that the sum of a
million reports costs a simulation no more than that of a few, and has the same law. A report's own
coins (`flips`, `below`) have their probabilities exactly, not rounded to those of a uniform number:
at ε = 40 a chance of e^−ε is less than the 2^−53 between two such numbers.

A keyed sum is drawn by NumPy's binomials, which round their chances to those of a uniform number.
Where p < 2^−20 they are thinned, Bin(n, p) = Bin(Bin(n, 2^−20), 2^20 p), so that no chance is too
small to come about. The rounding that is left is not bounded here: a sum is what a simulation draws
in place of reports, and the audit of what a user sends is that of `reports`.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from fedsim import seeds
from privacy.normal import system as system_noise

_AT_ONCE = 2**20
_THIN = 2.0**-20
_BLOCK = 2**16
"""Bytes at once: they stay in a core's cache."""


class Coins(Protocol):
    """A stream of random draws."""

    def uniform(self, size: int | tuple[int, ...]) -> np.ndarray:
        """Return independent uniforms in [0, 1), float64."""
        ...

    def words(self, size: int) -> np.ndarray:
        """Return independent uniform 64-bit words, uint64."""
        ...

    def below(self, size: int, count: int) -> np.ndarray:
        """Return independent uniform whole numbers in [0, count), int64."""
        ...

    def binomial(self, n: np.ndarray, p: float | np.ndarray) -> np.ndarray:
        """Return independent binomials, int64, of the shape of `n`."""
        ...

    def spread(self, n: int, places: int) -> np.ndarray:
        """Return how many of n independent uniform draws fell on each of `places`, int64."""
        ...


def keyed(seed: int, server_round: int, client: int, purpose: str) -> Coins:
    """Return the coins of one (seed, round, client, purpose).

    Example:
        >>> a, b = keyed(0, 1, 7, "report"), keyed(0, 1, 7, "report")
        >>> bool((a.uniform(3) == b.uniform(3)).all())
        True
    """
    return _Keyed(seeds.rng(seed, server_round, client, purpose))


def system() -> Coins:
    """Return the operating system's coins."""
    return _System()


def flips(coins: Coins, size: int | tuple[int, ...], chance: float) -> np.ndarray:
    """Return independent coins that are true with probability `chance` exactly, bool.

    A uniform number's digits to base 256 are drawn one by one until one differs from that of
    `chance`: at once but for 1 of 256. Every float in [0, 1] has finitely many digits.

    Example:
        >>> flips(keyed(0, 1, 7, "report"), 3, 1.0).tolist()
        [True, True, True]
    """
    shape = (size,) if isinstance(size, int) else size
    rest, digit = math.modf(256 * chance)
    heads, open_parts = np.empty(math.prod(shape), bool), [np.empty(0, np.int64)]
    for start in range(0, len(heads), _BLOCK):
        drawn = _bytes(coins, min(_BLOCK, len(heads) - start))
        np.less(drawn, int(digit), out=heads[start : start + len(drawn)])
        open_parts.append(start + np.flatnonzero(drawn == int(digit)))
    undecided = np.concatenate(open_parts)
    while rest and len(undecided):
        rest, digit = math.modf(256 * rest)
        drawn = _bytes(coins, len(undecided))
        heads[undecided], undecided = drawn < int(digit), undecided[drawn == int(digit)]
    return heads.reshape(shape)


def _bytes(coins: Coins, count: int) -> np.ndarray:
    return coins.words(-(-count // 8)).view(np.uint8)[:count]


class _Keyed:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def uniform(self, size: int | tuple[int, ...]) -> np.ndarray:
        return self._rng.random(size)

    def words(self, size: int) -> np.ndarray:
        return self._rng.integers(0, 2**64, size=size, dtype=np.uint64)

    def below(self, size: int, count: int) -> np.ndarray:
        return self._rng.integers(0, count, size=size)

    def binomial(self, n: np.ndarray, p: float | np.ndarray) -> np.ndarray:
        left, chance = np.broadcast_arrays(np.asarray(n, np.int64), p)
        while (small := (chance > 0) & (chance < _THIN)).any():
            left = np.where(small, self._rng.binomial(left, _THIN), left)
            chance = np.where(small, chance / _THIN, chance)
        drawn: np.ndarray = self._rng.binomial(left, chance)
        return drawn

    def spread(self, n: int, places: int) -> np.ndarray:
        drawn: np.ndarray = self._rng.multinomial(n, np.full(places, 1 / places))
        return drawn


class _System:
    """Each coin is tossed: no shortcut needs to be trusted."""

    def __init__(self) -> None:
        self._noise = system_noise()

    def uniform(self, size: int | tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(size))
        uniform: np.ndarray = (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return uniform.reshape(size)

    def words(self, size: int) -> np.ndarray:
        return self._noise.words(size)

    def below(self, size: int, count: int) -> np.ndarray:
        drawn, last = self.words(size), np.uint64(2**64 - 1 - 2**64 % count)
        # Beyond the last full run of remainders, small ones would come more often.
        while len(again := np.flatnonzero(drawn > last)):
            drawn[again] = self.words(len(again))
        return (drawn % np.uint64(count)).astype(np.int64)

    def binomial(self, n: np.ndarray, p: float | np.ndarray) -> np.ndarray:
        n = np.asarray(n, np.int64)
        drawn, chance = np.zeros(n.shape, np.int64), np.broadcast_to(p, n.shape)
        for place in np.ndindex(n.shape):
            left = int(n[place])
            while left:
                now = min(left, _AT_ONCE)
                drawn[place] += int(flips(self, now, float(chance[place])).sum())
                left -= now
        return drawn

    def spread(self, n: int, places: int) -> np.ndarray:
        drawn = np.zeros(places, np.int64)
        while n:
            now = min(n, _AT_ONCE)
            drawn += np.bincount(self.below(now, places), minlength=places)
            n -= now
        return drawn
