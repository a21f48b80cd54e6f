"""Users at several parties with items by Zipf's law, of which a set share is common to all parties.

    a user of party i draws, with probability `common`, from one ranking that all parties share, and
    otherwise from its party's own:   P[the item of rank r] = r^−exponent / Σ_s s^−exponent

Items are distinct random numbers of M bits. Two rankings are independent random orders, so that at
`common` = 0 each party has heavy hitters of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.items import MOST_BITS, dataset_of
from fedsim.errors import ConfigError
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Zipf(DataPart):
    """Made-up users; column `party` says whose each is.

    Attributes:
        sizes: Users of each party.
        items: How many different ones there are.
        bits: M.
        exponent: Of the law.
        common: Share of the popularity that all parties have in common.
        seed: Keys the draw. It is the data's own, not the scenario's.
    """

    sizes: list[int] = field(default_factory=lambda: [60_000, 40_000, 25_000, 15_000])
    items: Annotated[int, Range(ge=1, le=1_000_000)] = 2000
    bits: Annotated[int, Range(ge=1, le=MOST_BITS)] = 24
    exponent: Annotated[float, Range(gt=0, le=10)] = 1.1
    common: Annotated[float, Range(ge=0, le=1)] = 0.8
    seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or min(self.sizes) < 0 or not sum(self.sizes):
            raise ConfigError(f"sizes: {self.sizes[:5]!r} is not allowed; type e.g. [6000, 4000]")
        if self.items > 2**self.bits:
            raise ConfigError(
                f"items: {self.items} different ones do not fit {self.bits} bits; raise data.bits"
            )

    def load(self) -> Dataset:
        """Draw the users; see `DataPart.load`."""
        rng = seeds.rng(self.seed, 0, seeds.SERVER, "zipf")
        codes = self._codes(rng)
        law = np.arange(1, self.items + 1) ** -self.exponent
        edges = np.cumsum(law / law.sum())
        edges[-1] = 1.0
        shared = rng.permutation(codes)
        drawn = []
        for size in self.sizes:
            own = rng.permutation(codes)
            rank = np.searchsorted(edges, rng.random(size), side="right")
            drawn.append(np.where(rng.random(size) < self.common, shared[rank], own[rank]))
        party_N = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)
        return dataset_of("zipf", np.concatenate(drawn), party_N, self.bits, listed=np.sort(codes))

    def _codes(self, rng: np.random.Generator) -> np.ndarray:
        if self.bits <= 20:
            return rng.permutation(2**self.bits)[: self.items].astype(np.int64)
        codes = np.empty(0, np.int64)
        while len(codes) < self.items:
            more = rng.integers(0, 2**self.bits, size=2 * self.items, dtype=np.int64)
            codes = np.unique(np.concatenate([codes, more]))
        return rng.permutation(codes)[: self.items]
