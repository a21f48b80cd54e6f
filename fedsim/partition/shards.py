"""Shards: samples sorted by label, cut into equal pieces, a few pieces per client.

McMahan et al. 2017 (arXiv:1602.05629), the "pathological non-IID" split of its section 3.

    sort by label; cut into N * s shards of equal size; deal s random shards to every client

With s = 2, most clients hold two classes. Nothing differs from the paper; where the number of
samples is no multiple of N * s, shard sizes differ by one so that every sample is still used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition import assign
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Shards(PartitionPart):
    """Label-sorted shards; every sample is used once.

    Attributes:
        shards_per_client: Shards that each client holds.
    """

    shards_per_client: Annotated[int, Range(ge=1)] = 2

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where a shard would be empty."""
        labels = dataset.labels()
        num_shards = self.num_clients * self.shards_per_client
        if num_shards > len(labels):
            raise ConfigError(
                f"shards_per_client: {self.num_clients} clients x {self.shards_per_client} shards"
                f" are more than the {len(labels)} train samples; lower partition.num_clients or"
                " partition.shards_per_client"
            )
        client_of_shard = np.empty(num_shards, np.int64)
        client_of_shard[rng.permutation(num_shards)] = np.repeat(
            np.arange(self.num_clients), self.shards_per_client
        )
        shuffled = rng.permutation(len(labels))  # which samples of a class share a shard is chance
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner_M = np.empty(len(labels), np.int64)
        sizes = assign.equal_sizes(len(labels), num_shards)
        owner_M[by_label] = np.repeat(client_of_shard, sizes)
        return assign.by_owner(owner_M, self.num_clients, rng)
