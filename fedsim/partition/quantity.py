"""Quantity skew: labels are iid, sizes are not.

NIID-Bench (Li et al. 2022, arXiv:2102.02079), section "quantity skew", and log-normal sizes.

    share_N ~ Dir(beta * 1_N)          (law: dirichlet)
    share_n ~ exp(spread * normal)     (law: lognormal), scaled to sum 1
    everyone gets min_size samples; the rest is cut at the cumulative shares

Differs from the paper: it draws again until the smallest client has 10 samples, which never ends
for many clients; with `min_size: 0` nothing is floored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition import assign
from fedsim.partition.base import ArrayPartition, Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Quantity(PartitionPart):
    """Unequal sizes with equal label distributions; every sample is used once.

    Attributes:
        law: How sizes are distributed.
        alpha: Concentration of `dirichlet` (the paper's beta): small is uneven.
        spread: Standard deviation of the log-size of `lognormal`: large is uneven, 0 is even.
        min_size: Samples that every client has at least. 0 allows empty clients.
    """

    law: Literal["lognormal", "dirichlet"] = "lognormal"
    alpha: Annotated[float, Range(ge=1e-6, le=1e6)] = 0.5
    spread: Annotated[float, Range(ge=0, le=10)] = 1.0
    min_size: Annotated[int, Range(ge=0)] = 1

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where there are not `min_size` samples for everyone."""
        num_samples = len(dataset.train_y)
        spare = num_samples - self.min_size * self.num_clients
        if spare < 0:
            raise ConfigError(
                f"min_size: {self.num_clients} clients x {self.min_size} is more than the"
                f" {num_samples} train samples; lower partition.min_size or partition.num_clients"
            )
        if self.law == "dirichlet":
            weight_N = rng.dirichlet(np.full(self.num_clients, self.alpha))
        else:
            weight_N = np.exp(self.spread * rng.standard_normal(self.num_clients))
        share_N1 = assign.normalise(weight_N[:, None])
        size_N = self.min_size + assign.cut(share_N1, np.array([spare]))[:, 0]
        return ArrayPartition(rng.permutation(num_samples), assign.offsets(size_N))
