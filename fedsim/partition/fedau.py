"""FedAU's class-normalised Dirichlet: client mixtures, scaled so that every class is used up.

Wang & Ji 2024 (arXiv:2306.03401); the construction is that of the authors' released code.

    q_n ~ Dir(alpha * 1_C)  for every client n
    class c is cut at the cumulative  q[:, c] / sum_n q[n, c],  rounded to the nearest sample

Labels are as skewed as with a client-wise Dirichlet, yet sizes vary mildly: 250 clients, alpha =
0.1 and 50,000 balanced samples give 163 / 197 / 260 (smallest / median / largest).

Shape suffixes: N clients, C classes.

Differs from the paper: the samples of a class are shuffled before they are cut.
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
class FedAUPartition(PartitionPart):
    """Client-wise, class-normalised Dirichlet label skew; every sample is used once.

    Attributes:
        alpha: Concentration of a client's mixture of classes.
        min_size: Draw again until every client has so many samples. 0 allows empty clients.
    """

    alpha: Annotated[float, Range(ge=1e-6, le=1e6)] = 0.1
    min_size: Annotated[int, Range(ge=0)] = 1

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where no draw meets `min_size`."""
        labels, draw = dataset.labels(), partial(self._draw, rng=rng)
        return assign.draw_by_class(labels, self.num_clients, self.min_size, draw, rng)

    def _draw(self, size_C: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mix_NC = rng.dirichlet(np.full(len(size_C), self.alpha), self.num_clients)
        return assign.cut(assign.normalise(mix_NC), size_C)
