"""Class-wise Dirichlet: each class is dealt to the clients in random proportions.

Yurochkin et al. 2019 (arXiv:1905.12022), NIID-Bench (Li et al. 2022, arXiv:2102.02079).

    for each class c:  s_c ~ Dir(alpha * 1_N);  cut the class at the cumulative shares s_c

Sizes vary as much as labels do: 250 clients, alpha = 0.1 and 50,000 balanced samples give smallest
/ median / largest clients of about 3 / 140 / 800.

Shape suffixes: N clients, C classes.

Differs from the paper: the published code always balances; here `self_balancing` is a choice. Cut
points are rounded to the nearest sample, not down. A smallest size that cannot be met is an error
after a bounded number of draws, not an endless loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.partition import assign
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Dirichlet(PartitionPart):
    """Class-wise Dirichlet label skew; every sample is used once.

    Attributes:
        alpha: Concentration: 100 is nearly iid, 0.1 gives most clients a few classes.
        self_balancing: A client that already holds the average number of samples gets none of the
            classes still to be dealt: sizes even out, and later classes are dealt more sparsely.
        min_size: Draw again until every client has so many samples. 0 allows empty clients.
    """

    alpha: Annotated[float, Range(ge=1e-6, le=1e6)] = 0.5
    self_balancing: bool = False
    min_size: Annotated[int, Range(ge=0)] = 1

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where no draw meets `min_size`."""
        labels, draw = dataset.labels(), partial(self._draw, rng=rng)
        return assign.draw_by_class(labels, self.num_clients, self.min_size, draw, rng)

    def _draw(self, size_C: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        share_NC = rng.dirichlet(np.full(self.num_clients, self.alpha), len(size_C)).T
        if not self.self_balancing:
            return assign.cut(share_NC, size_C)
        average = size_C.sum() / self.num_clients
        count_NC = np.zeros(share_NC.shape, np.int64)
        for c in range(len(size_C)):
            # Someone is below the average as long as a class is left to deal.
            open_N = count_NC.sum(axis=1) < average
            open_share_N1 = assign.normalise(share_NC[open_N, c : c + 1])
            count_NC[open_N, c] = assign.cut(open_share_N1, size_C[c : c + 1])[:, 0]
        return count_NC
