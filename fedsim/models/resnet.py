"""Small residual network with group normalisation.

    3x3 convolution -> GroupNorm -> ReLU
    per entry of `widths`: `blocks` basic blocks; the first block of every later stage has stride 2
    mean over height and width -> linear

    block(x) = ReLU( GN(conv3x3(ReLU(GN(conv3x3(x))))) + shortcut(x) )

Sources: He et al. (arXiv:1512.03385, section 4.2: 6n + 2 layers for n = `blocks`, so the default is
ResNet-8); Wu and He (arXiv:1803.08494) for GroupNorm; Hsieh et al. (arXiv:1910.00189) for why
federated models want it: it takes no statistics over the batch, so clients with skewed labels do
not disturb one another, and samples stay independent as DP-SGD requires.

Differs from the paper: GroupNorm for BatchNorm; shortcuts that change shape are 1x1 convolutions
with GroupNorm (the paper's option B) where the paper pads with zeros (option A) on small images.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart
from fedsim.models.shapes import image_shape
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class ResNet(ModelPart):
    """Residual stages of growing width and halving resolution.

    Convolutions are Kaiming-normal in the backward form (std sqrt(2 / fan_out), arXiv:1502.01852)
    and have no bias, as GroupNorm follows each; the output layer keeps PyTorch's default.

    Attributes:
        widths: Channels of each stage; every one a multiple of `groups`.
        blocks: Blocks per stage.
        groups: Groups of each GroupNorm.
    """

    widths: Annotated[list[int], Range(ge=1)] = field(default_factory=lambda: [16, 32, 64])
    blocks: Annotated[int, Range(ge=1)] = 1
    groups: Annotated[int, Range(ge=1)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ConfigError("model.widths: [] has no stage; give one or more, e.g. [16, 32, 64]")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(
                    f"model.widths: {width} is not a multiple of model.groups={self.groups}; "
                    "change one of the two, e.g. model.groups=1"
                )

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: float `[B, channels, height, width]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not float images.
        """
        size, _, _ = image_shape(dataset)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["stem"] = _conv3x3(size, self.widths[0], stride=1)
        layers["stem_norm"] = nn.GroupNorm(self.groups, self.widths[0])
        layers["stem_relu"] = nn.ReLU()
        size = self.widths[0]
        for i, width in enumerate(self.widths, start=1):
            for j in range(1, self.blocks + 1):
                stride = 2 if i > 1 and j == 1 else 1
                layers[f"stage{i}_block{j}"] = _Block(size, width, stride, self.groups)
                size = width
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        model = nn.Sequential(layers)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        model.add_module("output", nn.Linear(size, dataset.num_outputs))
        return model


class _Block(nn.Module):
    """Two convolutions and a shortcut.

    `[B, inputs, H, W]` -> `[B, outputs, H / stride, W / stride]`, rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.conv2 = _conv3x3(outputs, outputs, stride=1)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
                    norm=nn.GroupNorm(groups, outputs),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return torch.relu(y)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
