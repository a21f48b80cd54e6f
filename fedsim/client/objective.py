"""The losses and metrics of the two tasks, as sums over samples.

Shapes: B samples, C classes, T positions of a sequence, D target columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.dataset import Task


def sample_losses(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's loss, `[B]`.

    Classification: cross-entropy of `outputs [B, C]` with `targets [B]`, or of `[B, T, C]` with
    `[B, T]`, averaged over positions. Regression: squared error of `[B, D]`, averaged over columns.
    """
    if task == "regression":
        return (outputs - targets).square().mean(dim=1)
    if outputs.dim() == 2:
        return F.cross_entropy(outputs, targets, reduction="none")
    flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape).mean(dim=1)


def sample_scores(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return each sample's loss and, by task, its accuracy or its squared error; each `[B]`."""
    losses = sample_losses(task, outputs, targets)
    if task == "regression":
        return {"loss": losses, "mse": losses}
    hits = (outputs.argmax(-1) == targets).to(losses.dtype)
    return {"loss": losses, "accuracy": hits if hits.dim() == 1 else hits.mean(dim=1)}


def score_names(task: Task) -> tuple[str, ...]:
    """Return the names of `sample_scores`, the last of which is the task's headline figure."""
    return ("loss", "mse") if task == "regression" else ("loss", "accuracy")


def mean_scores(scores: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each score as a Python float, summed in float64."""
    return {
        name: float(values.sum(dtype=torch.float64)) / len(values)
        for name, values in scores.items()
    }
