"""A vector cut into buckets of d numbers, the last of which may be shorter.

Shapes: P numbers in Q buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Buckets:
    """How P numbers are cut.

    Attributes:
        count: P.
        width: d; None for one bucket of all.
    """

    count: int
    width: int | None

    def __len__(self) -> int:
        """Return Q."""
        return -(-self.count // (self.width or max(1, self.count)))

    def reduce(self, by: np.ufunc, values_P: np.ndarray) -> np.ndarray:
        """Return each bucket's sum (`np.add`), maximum (`np.maximum`) or the like, `[Q]`."""
        starts = np.arange(len(self)) * (self.width or self.count)
        reduced_Q: np.ndarray = by.reduceat(values_P, starts)
        return reduced_Q

    def spread(self, values_Q: np.ndarray) -> np.ndarray:
        """Return each number's bucket's value, `[P]`."""
        spread_P: np.ndarray = np.repeat(values_Q, self.width or self.count)[: self.count]
        return spread_P


def stochastic(scaled_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return whole numbers, uint32, next to numbers >= 0, whose means they are.

    By the fraction alone: adding it to a draw could round to the whole number above the next.
    """
    floor_P = np.floor(scaled_P)
    up_P = rng.random(len(scaled_P)) < scaled_P - floor_P
    level_P: np.ndarray = floor_P.astype(np.uint32) + up_P.astype(np.uint32)
    return level_P
