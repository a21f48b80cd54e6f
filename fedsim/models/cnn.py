"""Convolutional network of FedAU (Wang and Ji, ICLR 2024, arXiv:2306.03401; code IBM/fedau).

    [3x3 convolution, padding 1 -> ReLU -> 2x2 max-pool] per entry of `channels`
    flatten -> [dropout -> linear -> ReLU] per entry of `hidden` -> dropout -> linear

With `channels: [32, 32]` as in the paper, on 3x32x32 images:

    data set    hidden      dropout   outputs   parameters
    SVHN        128         0         10           273,706
    CIFAR-10    256, 64     0         10           551,786
    CIFAR-100   512, 256    0.2       100        1,216,260
    CINIC-10    512, 256    0.2       10         1,193,130

Differs from the paper: nothing in shape or initialisation; dropout masks are keyed (`dropout.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated

from torch import nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart
from fedsim.models.dropout import KeyedDropout
from fedsim.models.shapes import image_shape
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class CNN(ModelPart):
    """Convolution blocks, then dense layers.

    Weights are Kaiming-normal for ReLU (std sqrt(2 / fan_in)) and biases zero on all but the output
    layer, which keeps PyTorch's default.

    Attributes:
        channels: Channels of each convolution block; each block halves height and width.
        hidden: Units of each dense layer before the output layer.
        dropout: Probability of dropping a value in front of every dense layer, the output layer
            included; 0 means no dropout layers.
    """

    channels: Annotated[list[int], Range(ge=1)] = field(default_factory=lambda: [32, 32])
    hidden: Annotated[list[int], Range(ge=1)] = field(default_factory=lambda: [128])
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: float `[B, channels, height, width]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not float images, or too small to be halved so often.
        """
        size, height, width = image_shape(dataset)
        shrink = 2 ** len(self.channels)
        if min(height, width) < shrink:
            raise ConfigError(
                f"model.channels: {len(self.channels)} blocks need images of at least "
                f"{shrink}x{shrink}, data set '{dataset.name}' gives {height}x{width}; "
                "give fewer blocks, e.g. model.channels=[32]"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, channels in enumerate(self.channels, start=1):
            layers[f"conv{i}"] = nn.Conv2d(size, channels, kernel_size=3, padding=1)
            layers[f"conv{i}_relu"] = nn.ReLU()
            layers[f"conv{i}_pool"] = nn.MaxPool2d(2)
            size = channels
        layers["flatten"] = nn.Flatten()
        size *= (height // shrink) * (width // shrink)
        for i, units in enumerate(self.hidden, start=1):
            if self.dropout:
                layers[f"hidden{i}_dropout"] = KeyedDropout(self.dropout)
            layers[f"hidden{i}"] = nn.Linear(size, units)
            layers[f"hidden{i}_relu"] = nn.ReLU()
            size = units
        if self.dropout:
            layers["output_dropout"] = KeyedDropout(self.dropout)
        for layer in layers.values():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # both are made with a bias
        layers["output"] = nn.Linear(size, dataset.num_outputs)
        return nn.Sequential(layers)
