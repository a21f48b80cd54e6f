"""Pathological label skew: every client holds exactly k classes.

NIID-Bench (Li et al. 2022, arXiv:2102.02079), "#C = k".

    choose k classes per client; share each class equally among the clients that chose it

Shape suffixes: N clients, C classes.

Differs from the paper: nothing with `choice: first`, its scheme (client n holds class n mod C and
k - 1 random others). `random` and `cyclic` (classes n, n + 1, ..., n + k - 1 mod C) are those of
flwr-datasets' PathologicalPartitioner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition import assign
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Pathological(PartitionPart):
    """Exactly `classes_per_client` classes at every client.

    Every sample of a class that some client holds is used once. A class that no client chose is
    left out; with `first` and `cyclic` that needs fewer clients than classes.

    Attributes:
        classes_per_client: k.
        choice: How a client's classes are chosen: `first`, `random` or `cyclic`, see above.
    """

    classes_per_client: Annotated[int, Range(ge=1)] = 2
    choice: Literal["first", "random", "cyclic"] = "first"

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where a class has fewer samples than holders."""
        _, label_M = np.unique(dataset.labels(), return_inverse=True)
        size_C = np.bincount(label_M)
        holds_NC = self._choose(len(size_C), rng)
        holders_C = holds_NC.sum(axis=0)
        short = np.flatnonzero(holders_C > size_C)
        if len(short) > 0:
            c = short[0]
            raise ConfigError(
                f"classes_per_client: {holders_C[c]} clients share a class of {size_C[c]} samples,"
                " so that some would get none of it; lower partition.num_clients or"
                " partition.classes_per_client"
            )
        # The r-th holder of a class (in client order) gets one sample more if r < the remainder.
        rank_NC = np.cumsum(holds_NC, axis=0) - 1
        each_C, more_C = np.divmod(size_C, np.maximum(holders_C, 1))
        count_NC = np.where(holds_NC, each_C + (rank_NC < more_C), 0)
        return assign.by_class_counts(label_M, count_NC, rng)

    def _choose(self, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """Return which client holds which class, bool `[N, C]`."""
        k = self.classes_per_client
        if k > num_classes:
            raise ConfigError(
                f"classes_per_client: {k} is more than the {num_classes} classes of the data set;"
                f" allowed: [1, {num_classes}]"
            )
        client_N1 = np.arange(self.num_clients)[:, None]
        if self.choice == "cyclic":
            chosen_NK = (client_N1 + np.arange(k)) % num_classes
        else:
            lot_NC = rng.random((self.num_clients, num_classes))
            if self.choice == "first":
                np.put_along_axis(lot_NC, client_N1 % num_classes, -1.0, axis=1)
            chosen_NK = np.argsort(lot_NC, axis=1)[:, :k]  # the k lowest lots
        holds_NC = np.zeros((self.num_clients, num_classes), bool)
        np.put_along_axis(holds_NC, chosen_NK, True, axis=1)
        return holds_NC
