"""Multilayer perceptron on the flattened input, with PyTorch's default initialisation.

`hidden: [200, 200]` on 28x28 images and ten classes is the "2NN" of McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv:1602.05629,
section 3), with 199,210 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.models.base import ModelPart
from fedsim.models.shapes import flat_size
from fedsim.parts import Range

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


@dataclass(frozen=True, kw_only=True)
class MLP(ModelPart):
    """Hidden layers, each a linear map and an activation, then a linear output layer.

    Attributes:
        hidden: Units of each hidden layer; an empty list leaves only the output layer.
        activation: What follows each hidden layer.
    """

    hidden: Annotated[list[int], Range(ge=1)] = field(default_factory=lambda: [200])
    activation: Literal["relu", "tanh", "gelu", "softplus"] = "relu"

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: float `[B, *input_shape]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not floating point.
        """
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        size = flat_size(dataset)
        for i, units in enumerate(self.hidden, start=1):
            layers[f"hidden{i}"] = nn.Linear(size, units)
            layers[f"activation{i}"] = _ACTIVATIONS[self.activation]()
            size = units
        layers["output"] = nn.Linear(size, dataset.num_outputs)
        return nn.Sequential(layers)
