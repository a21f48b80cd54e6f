"""Feature skew by noise: iid shares, the later the client, the noisier its inputs.

NIID-Bench (Li et al. 2022, arXiv:2102.02079), "noise-based feature imbalance".

    x~ = x + sqrt(sigma * i / N) * z,   z ~ N(0, I),   for the i-th of N clients, i = 1..N

The noise belongs to the sample: a client sees the same noisy input every time. The test set has
none. Differs from the paper: its code takes sigma * i / N for the standard deviation, draws fresh
noise at each visit, and adds it to the test inputs of client i as well; the text is followed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition.base import ArrayPartition, Partition, PartitionPart
from fedsim.partition.iid import equal_shares
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Noise(PartitionPart):
    """IID shares with Gaussian noise that grows with the client index; samples are used once.

    Attributes:
        sigma: Noise variance of the last client, in squared input units.
    """

    sigma: Annotated[float, Range(ge=0)] = 0.1

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where inputs are integers, e.g. tokens."""
        if not dataset.train_x.is_floating_point():
            raise ConfigError(
                f"sigma: noise needs real-valued inputs; data set '{dataset.name}' has"
                f" {dataset.train_x.dtype}; use partition=iid"
            )
        order, offsets = equal_shares(len(dataset.train_y), self.num_clients, rng)
        return NoisyPartition(order, offsets, self.sigma, seed=int(rng.integers(2**32)))


class NoisyPartition(ArrayPartition):
    """An `ArrayPartition` whose clients see noisy inputs.

    Args:
        order: See `ArrayPartition`.
        offsets: See `ArrayPartition`.
        sigma: Noise variance of the last client.
        seed: Keys the noise, with the client and the sample's position at the client.
    """

    def __init__(self, order: np.ndarray, offsets: np.ndarray, sigma: float, seed: int) -> None:
        super().__init__(order, offsets)
        self.sigma = sigma
        self.seed = seed

    def transform(self, client: int, x: Tensor) -> Tensor:
        """Return the noisy inputs of one client.

        The noise is a function of the position, so `x` must be *all* of the client's inputs in the
        order of `indices(client)`; take mini-batches and held-out parts from the result.

        Raises:
            ValueError: `x` has not as many rows as the client has samples.
        """
        size = int(self.offsets[client + 1] - self.offsets[client])
        if len(x) != size:
            raise ValueError(
                f"transform of client {client} got {len(x)} rows; it needs all {size} of the"
                " client's samples, in the order of indices(client)"
            )
        variance = self.sigma * (client + 1) / self.num_clients
        # float32 on the CPU whatever the engine computes in, so that every device adds the same.
        rng = seeds.rng(self.seed, 0, client, "partition-noise")
        z: Tensor = torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))
        noisy: Tensor = x + (z * variance**0.5).to(x.device, x.dtype)
        return noisy
