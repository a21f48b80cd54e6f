"""Where a randomised report's randomness comes from: a keyed generator, or the operating system's.

    keyed(seed, round, client, purpose)   NumPy's generator of `fedsim.seeds`, for simulation
    system()                              os.urandom: uniforms of 53 bits, nothing kept

What an oracle draws is said in terms of uniforms, binomials and multinomials, so that the sum of a
million reports costs a simulation no more than that of a few, and has the same law.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fedsim import seeds
from privacy.normal import system as system_noise

_AT_ONCE = 2**20


class Coins(Protocol):
    """A stream of random draws."""

    def uniform(self, size: int | tuple[int, ...]) -> np.ndarray:
        """Return independent uniforms in [0, 1), float64."""
        ...

    def words(self, size: int) -> np.ndarray:
        """Return independent uniform 64-bit words, uint64."""
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


class _Keyed:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def uniform(self, size: int | tuple[int, ...]) -> np.ndarray:
        return self._rng.random(size)

    def words(self, size: int) -> np.ndarray:
        return self._rng.integers(0, 2**64, size=size, dtype=np.uint64)

    def binomial(self, n: np.ndarray, p: float | np.ndarray) -> np.ndarray:
        drawn: np.ndarray = self._rng.binomial(n, p)
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

    def binomial(self, n: np.ndarray, p: float | np.ndarray) -> np.ndarray:
        n = np.asarray(n, np.int64)
        drawn, chance = np.zeros(n.shape, np.int64), np.broadcast_to(p, n.shape)
        for place in np.ndindex(n.shape):
            left = int(n[place])
            while left:
                now = min(left, _AT_ONCE)
                drawn[place] += int((self.uniform(now) < chance[place]).sum())
                left -= now
        return drawn

    def spread(self, n: int, places: int) -> np.ndarray:
        drawn = np.zeros(places, np.int64)
        while n:
            now = min(n, _AT_ONCE)
            drawn += np.bincount((self.uniform(now) * places).astype(np.int64), minlength=places)
            n -= now
        return drawn
