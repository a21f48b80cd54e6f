"""Natural partition: the clients are the users, sites or devices that the data set names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.partition import assign
from fedsim.partition.base import Partition, PartitionPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Natural(PartitionPart):
    """One client per value of a column of the data set; every sample is used once.

    Attributes:
        num_clients: null: as many as the column has values, client k holding the k-th in sorted
            order. A smaller number deals the values to that many clients at random, as evenly as
            possible (NIID-Bench's FEMNIST, arXiv:2102.02079).
        column: The column of the train set to go by.
    """

    # Wider than the base's: here, the data say how many clients there are.
    num_clients: Annotated[int, Range(ge=1, lt=2**32 - 1)] | None = None  # type: ignore[assignment]
    column: str = "user"

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where there is no such column."""
        if self.column not in dataset.columns:
            known = ", ".join(sorted(dataset.columns)) or "none"
            raise ConfigError(
                f"column: data set '{dataset.name}' has no column '{self.column}'; available:"
                f" {known}{did_you_mean(self.column, dataset.columns)}"
            )
        column_M = np.asarray(dataset.columns[self.column])
        if column_M.shape != (len(dataset.train_y),):
            raise DataError(
                f"column: '{self.column}' of data set '{dataset.name}' has shape {column_M.shape};"
                f" expected one value per train sample, ({len(dataset.train_y)},)"
            )
        values, value_M = np.unique(column_M, return_inverse=True)
        num_clients = len(values) if self.num_clients is None else self.num_clients
        if num_clients > len(values):
            raise ConfigError(
                f"num_clients: {num_clients} is more than the {len(values)} values of column"
                f" '{self.column}'; use partition.num_clients=null for one client per value"
            )
        client_of_value = np.arange(len(values))
        if num_clients < len(values):
            client_of_value = rng.permutation(client_of_value % num_clients)
        return assign.by_owner(client_of_value[value_M], num_clients, rng)
