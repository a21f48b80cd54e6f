"""What every partition part gives: for each client index, its sample indices."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor

from fedsim.data.dataset import Dataset
from fedsim.parts import Part, Range


class Partition(abc.ABC):
    """Who holds which train samples. A virtual client is an index here, never an object."""

    num_clients: int

    @abc.abstractmethod
    def indices(self, client: int) -> np.ndarray:
        """Return the train-sample indices of one client, int64 `[n]`, in a fixed order."""

    @abc.abstractmethod
    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Return the number of samples of each of `clients`, int64 `[K]`."""

    def transform(self, client: int, x: Tensor) -> Tensor:
        """Return a client's view of its inputs `x [n, ...]`; feature skew overrides this.

        A pure function of (client, x). `x` always holds all of the client's samples, in the order
        of `indices(client)`, so that a transform may depend on a sample's position.
        """
        return x

    @property
    def transforms(self) -> bool:
        """Whether `transform` does anything; engines skip it where it does not."""
        return type(self).transform is not Partition.transform

    def label_histogram(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return how many samples of each class each client holds, int64 `[N, C]`."""
        histogram_NC = np.zeros((self.num_clients, num_classes), np.int64)
        for client in range(self.num_clients):
            counts = np.bincount(labels[self.indices(client)], minlength=num_classes)
            histogram_NC[client] = counts
        return histogram_NC


class ArrayPartition(Partition):
    """A partition held as one permutation array and one offset array.

    Args:
        order: Train-sample indices, client after client, `[M]`.
        offsets: Client `k` holds `order[offsets[k]:offsets[k + 1]]`; int64 `[N + 1]`.
    """

    def __init__(self, order: np.ndarray, offsets: np.ndarray) -> None:
        self.order = order.astype(np.int64, copy=False)
        self.offsets = offsets.astype(np.int64, copy=False)
        self.num_clients = len(offsets) - 1

    @classmethod
    def from_lists(cls, lists: Sequence[np.ndarray]) -> ArrayPartition:
        """Make a partition from one index array per client."""
        offsets = np.cumsum([0, *(len(part) for part in lists)])
        return cls(np.concatenate([np.asarray(part, np.int64) for part in lists]), offsets)

    def indices(self, client: int) -> np.ndarray:
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        sizes: np.ndarray = self.offsets[clients + 1] - self.offsets[clients]
        return sizes

    def label_histogram(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        owner = np.repeat(np.arange(self.num_clients), np.diff(self.offsets))
        cell = owner * num_classes + labels[self.order]
        counts = np.bincount(cell, minlength=self.num_clients * num_classes)
        return counts.reshape(self.num_clients, num_classes)


@dataclass(frozen=True, kw_only=True)
class PartitionPart(Part, abc.ABC):
    """A partition scheme, as the `partition` group of a scenario names it.

    Attributes:
        num_clients: How many clients the population has; null only for a scheme that takes the
            number from the data (a natural user column).
        holdout: Share of each client's samples kept from training for its own evaluation.
    """

    num_clients: Annotated[int, Range(ge=1, lt=2**32 - 1)] = 100
    holdout: Annotated[float, Range(ge=0, lt=1)] = 0.0

    @abc.abstractmethod
    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Assign the train samples to clients; all randomness from `rng`.

        Raises:
            ConfigError: The scheme cannot be met on this data set (too few samples, no such
                column); the message says which key to change.
        """


def train_sizes(sizes: np.ndarray, holdout: float) -> np.ndarray:
    """Return how many of clients' samples are left for training, int64, of `sizes`' shape."""
    left: np.ndarray = sizes - (sizes * holdout).astype(np.int64)
    return left


def labelled_sizes(sizes: np.ndarray, labelled: float) -> np.ndarray:
    """Return of how many of clients' training samples the targets are known, of `sizes`' shape.

    The nearest whole number; at least one of a client's samples, where the share is not 0.
    """
    known: np.ndarray = np.floor(sizes * labelled + 0.5).astype(np.int64)
    return np.minimum(np.maximum(known, 1), sizes) if labelled else known
