"""Gradient estimators: how a batch becomes a gradient. The scenario's `privacy` group picks one."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.client.half import Batch
from fedsim.parts import Part
from fedsim.records import Params


class GradientEstimator(Part, abc.ABC):
    """Estimates the gradient of one client's batch."""

    @abc.abstractmethod
    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        """Return the gradient with respect to every tensor of `params`, and the batch's loss."""

    @property
    def plain(self) -> bool:
        """Whether this is the exact gradient, which engines may compute in any way they like."""
        return False

    @abc.abstractmethod
    def statement(self) -> str:
        """Return what may be claimed of a run's privacy, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Plain(GradientEstimator):
    """The exact gradient of the batch: no privacy mechanism."""

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        value = loss(leaves, batch)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        filled = [
            torch.zeros_like(leaf) if grad is None else grad
            for grad, leaf in zip(grads, leaves.values(), strict=True)
        ]
        return dict(zip(leaves, filled, strict=True)), value.detach()

    @property
    def plain(self) -> bool:
        return True

    def statement(self) -> str:
        return "none: no privacy mechanism; every update reveals what its samples reveal"
