"""What a data set must look like for a family of models, checked in one place."""

from __future__ import annotations

import math

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError


def flat_size(dataset: Dataset) -> int:
    """Return the number of values of one float input, whatever its shape.

    Raises:
        ConfigError: The inputs are not floating point.
    """
    if not dataset.train_x.is_floating_point():
        raise _mismatch(dataset, "float inputs of any shape", "model=transformer")
    return math.prod(dataset.input_shape)


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """Return (channels, height, width) of a data set of float images.

    Raises:
        ConfigError: The inputs are not floating point or not three-dimensional.
    """
    if not dataset.train_x.is_floating_point() or len(dataset.input_shape) != 3:
        raise _mismatch(dataset, "float images [channels, height, width]", "model=mlp")
    channels, height, width = dataset.input_shape
    return channels, height, width


def sequence_length(dataset: Dataset) -> int:
    """Return the number of tokens T of one input of a data set of int64 token sequences.

    Raises:
        ConfigError: The inputs are floating point or not one-dimensional.
    """
    if dataset.train_x.is_floating_point() or len(dataset.input_shape) != 1:
        raise _mismatch(dataset, "int64 tokens [length]", "model=mlp")
    return dataset.input_shape[0]


def _mismatch(dataset: Dataset, needed: str, instead: str) -> ConfigError:
    kind = str(dataset.train_x.dtype).removeprefix("torch.")
    return ConfigError(
        f"model: data set '{dataset.name}' gives {kind} inputs {list(dataset.input_shape)}, "
        f"this model takes {needed}; choose another data set with data=..., or {instead}"
    )
