"""Feature skew by rotation: iid shares, each client's images turned by its own quarter turns.

Ghosh et al. 2020 (IFCA, arXiv:2006.04088), "rotated MNIST" and "rotated CIFAR".

    client n sees its images turned by quarter_turns[n mod len] * 90 degrees, counter-clockwise

The test set is not turned. Differs from the paper: clients share the samples out; the paper gives
every rotation its own copy of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.partition.base import ArrayPartition, Partition, PartitionPart
from fedsim.partition.iid import equal_shares
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Rotation(PartitionPart):
    """IID shares, rotated by client; every sample is used once.

    Attributes:
        quarter_turns: Dealt to the clients in turn, e.g. [0, 2] for upright and upside down.
    """

    quarter_turns: Annotated[tuple[int, ...], Range(ge=0, le=3)] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.quarter_turns:
            raise ConfigError("quarter_turns: [] is empty; e.g. [0, 1, 2, 3]")

    def split(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """See `PartitionPart.split`. Fails where inputs are no images."""
        shape = dataset.input_shape
        if len(shape) < 2:
            raise ConfigError(
                f"quarter_turns: {list(self.quarter_turns)} turn images [..., height, width]; data"
                f" set '{dataset.name}' has inputs of shape {shape}; use images (digits has them"
                " with data.image=true) or partition=noise, which takes any shape"
            )
        if shape[-1] != shape[-2] and any(turns % 2 for turns in self.quarter_turns):
            raise ConfigError(
                f"quarter_turns: {list(self.quarter_turns)} would swap the sides of the"
                f" {shape[-2]}x{shape[-1]} images of data set '{dataset.name}'; use"
                " partition.quarter_turns=[0,2]"
            )
        order, offsets = equal_shares(len(dataset.train_y), self.num_clients, rng)
        return RotatedPartition(order, offsets, self.quarter_turns)


class RotatedPartition(ArrayPartition):
    """An `ArrayPartition` whose clients see turned images.

    Args:
        order: See `ArrayPartition`.
        offsets: See `ArrayPartition`.
        quarter_turns: Client n turns by `quarter_turns[n mod len]` quarters.
    """

    def __init__(
        self, order: np.ndarray, offsets: np.ndarray, quarter_turns: tuple[int, ...]
    ) -> None:
        super().__init__(order, offsets)
        self.quarter_turns = quarter_turns

    def transform(self, client: int, x: Tensor) -> Tensor:
        """Return `x [n, ..., height, width]` turned; any rows, in any order."""
        turns = self.quarter_turns[client % len(self.quarter_turns)]
        return torch.rot90(x, turns, dims=(-2, -1)) if turns else x
