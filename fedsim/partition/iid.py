"""Equal random shares: the reference without heterogeneity.

A random permutation of the samples, cut into N contiguous parts whose sizes differ by at most one;
the first (samples mod N) clients hold the larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.partition import assign
from fedsim.partition.base import ArrayPartition, Partition, PartitionPart


@dataclass(frozen=True, kw_only=True)
class Iid(PartitionPart):
    """Every client gets an equal random share; every sample is used once."""

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Refuses more clients than samples."""
        return ArrayPartition(*equal_shares(len(dataset.train_y), self.num_clients, rng))


def equal_shares(
    num_samples: int, num_clients: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `order [M]` and `offsets [N + 1]` of an equal random split.

    Raises:
        ConfigError: There are more clients than samples.
    """
    assign.check_enough(num_samples, num_clients)
    sizes = assign.equal_sizes(num_samples, num_clients)
    return rng.permutation(num_samples), assign.offsets(sizes)
