"""Windows coded by an autoencoder, and classified from the code.

    encoder: in -> hidden[0] -> ... -> latent        ReLU between, none at the code
    decoder: latent -> ... -> hidden[0] -> in        ReLU between; linear or tanh at its end
    head:    (code − mean) / std -> head_hidden -> classes

Called as a model it classifies: `head(encoder(x))`, so that any strategy can train it. The mean and
the standard deviation are buffers that whoever trains heads on codes sets (`standardised`); they
begin as 0 and 1.

`hidden: [256, 128]`, `latent: 64`, `head_hidden: 16` are those of SemiPFL's code (IEEE IoT-J 2023),
221,262 parameters of encoder and decoder on 270 inputs.

Differs from that code: its head has batch normalisation twice, of which the first does what the
buffers do, and the second is left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.models.base import ModelPart
from fedsim.models.shapes import flat_size
from fedsim.parts import Range


class Standardise(nn.Module):
    """(z − mean) / std with buffers.

    Args:
        size: Of a code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        return (z - self.mean) / self.std


class CodedClassifier(nn.Module):
    """An encoder, a decoder and a head; see the module.

    Args:
        shape: Of one input.
        hidden: Units of the encoder's layers; the decoder's are the same in reverse.
        latent: Of the code.
        head_hidden: Units of the head's hidden layer; 0 for none.
        classes: How many.
        bounded: Whether the decoder ends in tanh.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        hidden: Sequence[int],
        latent: int,
        head_hidden: int,
        classes: int,
        bounded: bool,
    ) -> None:
        super().__init__()
        self.bounded = bounded
        sizes = [math.prod(shape), *hidden, latent]
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(sizes))
        ends = [nn.Tanh()] if bounded else []
        back = _layers(sizes[::-1])
        self.decoder = nn.Sequential(*back, *ends, nn.Unflatten(1, tuple(shape)))
        head: OrderedDict[str, nn.Module] = OrderedDict(scale=Standardise(latent))
        if head_hidden:
            head["hidden"] = nn.Linear(latent, head_hidden)
            head["activation"] = nn.ReLU()
        head["output"] = nn.Linear(head_hidden or latent, classes)
        self.head = nn.Sequential(head)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, C]` of inputs `[B, *shape]`."""
        logits: Tensor = self.head(self.encoder(x))
        return logits

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return what the code keeps of inputs, `[B, *shape]`."""
        again: Tensor = self.decoder(self.encoder(x))
        return again


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.ReLU()] * bool(i) + [nn.Linear(sizes[i], sizes[i + 1])]
    return layers


@dataclass(frozen=True, kw_only=True)
class Autoencoder(ModelPart):
    """See the module.

    Attributes:
        hidden: Units of the encoder's hidden layers.
        latent: Of the code.
        head_hidden: Units of the head's hidden layer; 0 for none.
        output: Of the decoder: `linear`, or `tanh` where inputs are bounded.
    """

    hidden: Annotated[list[int], Range(ge=1)] = field(default_factory=lambda: [256, 128])
    latent: Annotated[int, Range(ge=1)] = 64
    head_hidden: Annotated[int, Range(ge=0)] = 16
    output: Literal["linear", "tanh"] = "linear"

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: float `[B, *input_shape]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not floating point.
        """
        flat_size(dataset)
        return CodedClassifier(
            dataset.input_shape,
            hidden=self.hidden,
            latent=self.latent,
            head_hidden=self.head_hidden,
            classes=dataset.num_outputs,
            bounded=self.output == "tanh",
        )
