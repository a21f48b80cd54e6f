"""Direct histogram: every user reports on the whole list of items, for small domains.

    f̂ = Σ_i (N_i/N) f̂_i over the clients, of all items that can occur;  the k largest

The items are all numbers of M bits, where these are few, or a list that is public. One round, and
no level takes users from another; but a report has the size of the list (OUE), or the variance
grows with it (k-RR).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.records import Params
from fedsim.strategy import Round
from strategies.heavy_hitters.search import Search

MOST_BITS = 16
"""All numbers of so many bits are few."""


@dataclass(kw_only=True)
class Histogram(Search):
    """A tree of one level."""

    levels: int = 1

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        if self.levels != 1:
            raise ConfigError(
                f"levels: {self.levels}, but a histogram has one; set strategy.levels=1, or "
                "strategy=pem"
            )
        release = super().begin(dataset, sizes_N)
        layout, bits = dataset.items, int(self.bits_of_levels[-1])
        listed = layout.listed if layout else None
        if listed is None and bits > MOST_BITS:
            raise ConfigError(
                f"strategy=histogram: items of {bits} bits are too many to report on all of them, "
                f"and data set '{dataset.name}' has no public list; use strategy=pem, or "
                f"data.bits={MOST_BITS}"
            )
        self._listed = np.arange(1 << bits) if listed is None else listed
        return release

    def shared(self) -> int:
        return 1

    def candidates(self, context: Round) -> np.ndarray:
        return self._listed
