"""What every model part gives: a module whose shapes follow from the data set."""

from __future__ import annotations

import abc

from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.parts import Part


class ModelPart(Part, abc.ABC):
    """A model, as the `model` group of a scenario names it."""

    @abc.abstractmethod
    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module for inputs `[B, *dataset.input_shape]` and `dataset.num_outputs` outputs.

        Initialisation may use torch's default generator: the caller runs `build` inside
        `torch.random.fork_rng` with the scenario's seed, so nothing global is touched.

        Raises:
            ConfigError: The model does not fit the data set's shapes.
        """
