"""Layer rules of `nn.GroupNorm` and `nn.LayerNorm`: a shared normalisation, K scales and shifts."""

from __future__ import annotations

import abc
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.layers.base import StackedLayer
from fedsim.records import Params


class _StackedNorm(StackedLayer):
    """y_kb = γ_k · â_kb + β_k, where â is the input normalised within its own sample."""

    @abc.abstractmethod
    def normalise(self, a: Tensor) -> Tensor:
        """Return â, of `a`'s shape."""

    @abc.abstractmethod
    def affine_shape(self, a: Tensor) -> tuple[int, ...]:
        """Return the shape that γ_k has beside one sample of `a`, without the sample axis."""

    def run(self, a: Tensor) -> Tensor:
        y = self.unfold(self.normalise(a))
        shape = (len(y), 1, *self.affine_shape(a))
        if (scale := self.weight("weight")) is not None:
            y = y * scale.view(shape)
        if (shift := self.weight("bias")) is not None:
            y = y + shift.view(shape)
        return y.view(a.shape)

    def contract_(self, into: Params, a: Tensor, g: Tensor, alpha: float) -> None:
        shape = self.affine_shape(a)
        # Sum over the samples and over every axis along which γ is broadcast.
        kept = [axis for axis, size in enumerate(shape) if size != 1]
        summed = [1, *(2 + axis for axis in range(len(shape)) if axis not in kept)]
        g_KB = self.unfold(g)
        if (scale := self.rows(into, "weight")) is not None:
            product = g_KB * self.unfold(self.normalise(a))
            scale.add_(product.sum(summed).view(scale.shape), alpha=alpha)
        if (shift := self.rows(into, "bias")) is not None:
            shift.add_(g_KB.sum(summed).view(shift.shape), alpha=alpha)


class StackedGroupNorm(_StackedNorm):
    """For folded inputs `[K*B, C, ...]`; γ, β are `[K, C]`."""

    def configure(self, layer: nn.Module) -> None:
        norm = cast(nn.GroupNorm, layer)
        self.groups, self.eps = norm.num_groups, norm.eps

    def normalise(self, a: Tensor) -> Tensor:
        return F.group_norm(a, self.groups, eps=self.eps)

    def affine_shape(self, a: Tensor) -> tuple[int, ...]:
        return (a.shape[1], *(1 for _ in a.shape[2:]))


class StackedLayerNorm(_StackedNorm):
    """For folded inputs `[K*B, ..., *normalized_shape]`; γ, β are `[K, *normalized_shape]`."""

    def configure(self, layer: nn.Module) -> None:
        norm = cast(nn.LayerNorm, layer)
        self.normalized_shape, self.eps = list(norm.normalized_shape), norm.eps

    def normalise(self, a: Tensor) -> Tensor:
        return F.layer_norm(a, self.normalized_shape, eps=self.eps)

    def affine_shape(self, a: Tensor) -> tuple[int, ...]:
        broadcast = a.dim() - 1 - len(self.normalized_shape)
        return (*(1 for _ in range(broadcast)), *self.normalized_shape)
