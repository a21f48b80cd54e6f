"""A virtual population of any size: every client draws its samples from the same pool.

For studies of scale and of cross-device privacy: 10^7 clients on 60,000 samples cost no memory,
because a client's indices are drawn, from its own key, when they are asked for.

Clients share samples, so a sample is *not* one client's alone: with privacy per sample, the same
record takes part through several clients. The pool is the whole train set and the split is iid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Resampled(PartitionPart):
    """Distinct random samples within a client, shared between clients.

    Attributes:
        samples_per_client: Distinct samples that each client holds.
    """

    samples_per_client: Annotated[int, Range(ge=1)] = 50

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where a client would hold more than there is."""
        pool = len(dataset.train_y)
        if self.samples_per_client > pool:
            raise ConfigError(
                f"samples_per_client: {self.samples_per_client} is more than the {pool} train"
                f" samples; allowed: [1, {pool}]"
            )
        return ResampledPartition(
            num_clients=self.num_clients,
            pool=pool,
            samples_per_client=self.samples_per_client,
            seed=int(rng.integers(2**32)),
        )


class ResampledPartition(Partition):
    """Samples drawn on demand; nothing is stored per client.

    Args:
        num_clients: Clients of the population.
        pool: Train samples to draw from.
        samples_per_client: Samples of each client.
        seed: Keys the draws, with the client index.
    """

    def __init__(self, *, num_clients: int, pool: int, samples_per_client: int, seed: int) -> None:
        self.num_clients = num_clients
        self.pool = pool
        self.samples_per_client = samples_per_client
        self.seed = seed

    def indices(self, client: int) -> np.ndarray:
        """Return the client's distinct sample indices, int64, in random order.

        Raises:
            IndexError: There is no such client; without this check any index would be answered.
        """
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} is outside [0, {self.num_clients})")
        rng = seeds.rng(self.seed, 0, client, "partition-resampled")
        return rng.choice(self.pool, self.samples_per_client, replace=False)

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Return `samples_per_client` for each of `clients`."""
        return np.full(len(clients), self.samples_per_client, np.int64)
