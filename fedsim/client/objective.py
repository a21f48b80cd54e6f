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


def sample_losses_and_gradients(
    task: Task, outputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each sample's loss `[B]` and its gradient with respect to `outputs [B, C]`.

    The same as `sample_losses` and autograd, for outputs of two axes, without a graph.
    """
    if task == "regression":
        apart = outputs - targets
        return apart.square().mean(dim=1), apart.mul_(2 / outputs.shape[1])
    if outputs.shape[1] < 32:  # over a short last axis, a softmax costs 15 times as much
        at = targets.unsqueeze(0)
        log_p = torch.log_softmax(outputs.T.contiguous(), 0)
        losses = log_p.gather(0, at).squeeze(0).neg_()
        return losses, log_p.exp_().scatter_add_(
            0, at, log_p.new_full(at.shape, -1.0)
        ).T.contiguous()
    at = targets.unsqueeze(1)
    log_p = torch.log_softmax(outputs, 1)
    losses = log_p.gather(1, at).squeeze(1).neg_()
    return losses, log_p.exp_().scatter_add_(1, at, log_p.new_full(at.shape, -1.0))


def sample_scores(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return each sample's loss and, by task, its accuracy or its squared error; each `[B]`."""
    losses = sample_losses(task, outputs, targets)
    if task == "regression":
        return {"loss": losses, "mse": losses}
    hits = (outputs.argmax(-1) == targets).to(losses.dtype)
    return {"loss": losses, "accuracy": hits if hits.dim() == 1 else hits.mean(dim=1)}


def score_names(task: Task, f1: bool = False) -> tuple[str, ...]:
    """Return the names of a model's scores: those of `sample_scores`, and F1 if it is wanted."""
    names = ("loss", "mse") if task == "regression" else ("loss", "accuracy")
    return (*names, WEIGHTED_F1) if f1 else names


WEIGHTED_F1 = "weighted-f1"


def confusion(
    owner_B: Tensor, targets_B: Tensor, guesses_B: Tensor, owners: int, classes: int
) -> Tensor:
    """Return how many samples of each class (row) were taken for which (column), `[K, C, C]`."""
    cell_B = (owner_B * classes + targets_B) * classes + guesses_B
    counts: Tensor = torch.bincount(cell_B, minlength=owners * classes * classes)
    return counts.view(owners, classes, classes)


def weighted_f1(counts_KCC: Tensor) -> Tensor:
    """Return the F1 of each class, averaged by how many samples are of it, float64 `[K]`.

    A class that is neither there nor guessed counts for nothing; 0 where there are no samples.

    Example:
        >>> weighted_f1(torch.tensor([[[2, 1], [0, 1]]]))  # 3/4 · 4/5 + 1/4 · 2/3
        tensor([0.7667], dtype=torch.float64)
    """
    counts = counts_KCC.double()
    hits_KC = counts.diagonal(dim1=-2, dim2=-1)
    true_KC, guessed_KC = counts.sum(-1), counts.sum(-2)
    f1_KC = 2 * hits_KC / (true_KC + guessed_KC).clamp(min=1)
    return (f1_KC * true_KC).sum(-1) / true_KC.sum(-1).clamp(min=1)


def padded_scores(log_KBC: Tensor, y_KB: Tensor, true_KB: Tensor) -> dict[str, Tensor]:
    """Return K classifiers' loss, accuracy and weighted F1, each `[K]`.

    Args:
        log_KBC: Their log-probabilities of their own samples.
        y_KB: The samples' classes.
        true_KB: Which samples are no padding, bool.
    """
    users, _, classes = log_KBC.shape
    losses = F.nll_loss(log_KBC.flatten(0, 1), y_KB.flatten(), reduction="none")
    guesses_KB = log_KBC.argmax(-1)
    count_K = true_KB.sum(1).clamp(min=1)
    owner_KB = torch.arange(users, device=y_KB.device).unsqueeze(1).expand_as(true_KB)
    counts = confusion(owner_KB[true_KB], y_KB[true_KB], guesses_KB[true_KB], users, classes)
    return {
        "loss": torch.where(true_KB, losses.view(true_KB.shape), 0).sum(1) / count_K,
        "accuracy": (true_KB & (guesses_KB == y_KB)).sum(1).double() / count_K,
        WEIGHTED_F1: weighted_f1(counts),
    }


def mean_scores(scores: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each score as a Python float, summed in float64."""
    return {
        name: float(values.sum(dtype=torch.float64)) / len(values)
        for name, values in scores.items()
    }
