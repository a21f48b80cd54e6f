"""Symmetric label noise on any classification data set (Angluin & Laird 1988).

    y~ = y with probability 1 - rate, else one of the other C - 1 classes, each equally likely

Only train labels change. What is drawn belongs to the sample: it is wrong in the same way in every
round, whoever holds it, and partitions that skew labels see the noisy ones, as a client would.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch

from fedsim import seeds
from fedsim.data.bundled import Bundled
from fedsim.data.dataset import DataPart, Dataset
from fedsim.errors import ConfigError
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class LabelNoise(DataPart):
    """Another data part, some of whose train labels are wrong.

    `Dataset.columns["clean_label"]` holds the true train labels where a sample has one label.

    Attributes:
        rate: Probability that a train label is wrong.
        noise_seed: Keys the draws; `${seed}` lets it follow the scenario's seed.
        source: The data part; any that gives class labels.
    """

    rate: Annotated[float, Range(ge=0, le=1)] = 0.3
    noise_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    source: DataPart = field(default_factory=lambda: Bundled(labels="parity"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, DataPart):
            raise ConfigError(
                f"source: {self.source!r} is no data part; give one as in scenarios/data, with a "
                "_target_ of its own"
            )

    def load(self) -> Dataset:
        """Load the source and draw the noise; see `DataPart.load`."""
        dataset = self.source.load()
        if dataset.task != "classification" or dataset.num_outputs < 2:
            raise ConfigError(
                f"source: label noise needs two classes or more; data set '{dataset.name}' has the "
                f"task {dataset.task} with {dataset.num_outputs} output(s)"
            )
        clean = dataset.train_y.numpy()
        rng = seeds.rng(self.noise_seed, 0, seeds.SERVER, "data.label-noise")
        wrong = rng.random(clean.shape) < self.rate
        other = (clean + rng.integers(1, dataset.num_outputs, clean.shape)) % dataset.num_outputs
        columns = {**dataset.columns, **({"clean_label": clean} if clean.ndim == 1 else {})}
        return replace(
            dataset,
            train_y=torch.from_numpy(np.where(wrong, other, clean)),
            columns=columns,
        )
