"""Check that a model takes the samples of a data set and gives outputs of the right shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError


def check_trainable(dataset: Dataset) -> None:
    """Check that there is something to train on.

    Raises:
        ConfigError: The data set holds items.
    """
    if dataset.task == "items":
        raise ConfigError(
            f"data: data set '{dataset.name}' holds items to be counted, and nothing to train a "
            "model on; use a strategy that counts (strategy=tap, with model=none), or other data"
        )


def check_model(model: nn.Module, dataset: Dataset) -> None:
    """Run `model` once, without gradients and in evaluation mode, on two train samples.

    The samples are moved to the device and floating-point dtype of the model; the model's modes and
    torch's CPU generator are left as they were.

    Args:
        model: Any module.
        dataset: The data that it is to be trained on; at least one train sample.

    Raises:
        ConfigError: The forward pass fails, or its output is not `[2, num_outputs]`, or
            `[2, T, num_outputs]` where the data set has one class label per position.
    """
    x = _two_samples(model, dataset)
    received = f"inputs {list(x.shape)} of data set '{dataset.name}'"
    try:
        output = _dry_forward(model, x)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise ConfigError(
            f"model: {type(model).__name__} fails on {received}: {type(error).__name__}: {reason}; "
            "change the model's layers to take this shape, or choose another model=... or data=..."
        ) from error
    shape = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    expected = [2, dataset.num_outputs]
    if dataset.task == "classification":
        expected[1:1] = dataset.train_y.shape[1:]
    if shape != expected:
        raise ConfigError(
            f"model: {type(model).__name__} gives {shape} for {received}; expected {expected}, the "
            f"last axis being the {dataset.num_outputs} outputs of this {dataset.task}; change the "
            "model's last layer, or choose another model=... or data=..."
        )


def _two_samples(model: nn.Module, dataset: Dataset) -> Tensor:
    if not len(dataset.train_x):
        raise ConfigError(f"data: data set '{dataset.name}' has no train samples; type data=...")
    x = dataset.train_x[[0, -1]]
    weight = next(model.parameters(), None)
    if weight is None:
        return x
    return x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype)


def _dry_forward(model: nn.Module, x: Tensor) -> object:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output: object = model(x)
        return output
    finally:
        for module, training in modes:
            module.training = training
