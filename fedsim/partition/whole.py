"""No partition: every client holds all of the data that it loads, as a device with its own does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.partition.base import Partition, PartitionPart


@dataclass(frozen=True, kw_only=True)
class Whole(PartitionPart):
    """Each client's samples are the whole train set.

    Deployed, each device loads data of its own (`--node-config 'data.root="/path"'`), and this is
    what leaves them undivided; the server loads its own copy, which gives the model its shape and
    the test set. Simulated, all clients hold the same samples.
    """

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        return _Whole(len(dataset.train_y), self.num_clients)


class _Whole(Partition):
    def __init__(self, num_samples: int, num_clients: int) -> None:
        self.num_samples = num_samples
        self.num_clients = num_clients

    def indices(self, client: int) -> np.ndarray:
        return np.arange(self.num_samples)

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        return np.full(len(clients), self.num_samples)

    def label_histogram(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        everyone = np.bincount(labels, minlength=num_classes)
        return np.tile(everyone, (self.num_clients, 1))
