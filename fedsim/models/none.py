"""No model: for strategies that ask questions and train nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart


@dataclass(frozen=True, kw_only=True)
class NoModel(ModelPart):
    """Nothing to train."""

    def build(self, dataset: Dataset) -> nn.Module:
        """Refuse: whoever asks for a module trains.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "model: none, but the strategy trains one; choose a model, e.g. model=mlp, or a "
            "strategy that asks questions, e.g. strategy=tap"
        )
