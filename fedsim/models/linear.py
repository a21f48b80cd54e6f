"""Linear model: logistic regression on class labels, linear regression on numbers.

    z = W x + b        W [num_outputs, inputs], x flattened

The loss belongs to the task of the data set, not to the model. Convex, so federated optimisers can
be checked on it against a known optimum.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.models.base import ModelPart
from fedsim.models.shapes import flat_size


@dataclass(frozen=True, kw_only=True)
class LinearModel(ModelPart):
    """One linear layer on the flattened input.

    Attributes:
        zero_init: Start at W = 0, b = 0, the usual start of a convex problem; else PyTorch's
            default, uniform in ±1/sqrt(inputs).
    """

    zero_init: bool = True

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: float `[B, *input_shape]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not floating point.
        """
        output = nn.Linear(flat_size(dataset), dataset.num_outputs)
        if self.zero_init:
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=output))
