"""Layer rules of `nn.GroupNorm` and `nn.LayerNorm`: a shared normalisation, K scales and shifts."""

from __future__ import annotations

import abc
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.layers.base import StackedLayer


class _StackedNorm(StackedLayer):
    """y_kb = γ_k · â_kb + β_k, where â is the input normalised within its own sample."""

    shape: list[int]
    """Of γ_k and of β_k."""

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

    def instantiate(self, parameter: str, a: Tensor, g: Tensor) -> Tensor:
        product = g * self.normalise(a) if parameter == "weight" else g
        # Sum over every axis along which γ is broadcast.
        shape = self.affine_shape(a)
        summed = [axis for axis, size in enumerate(shape, start=1) if size == 1]
        grads = product.sum(summed) if summed else product
        return grads.reshape(len(a), *self.shape)


class StackedGroupNorm(_StackedNorm):
    """For folded inputs `[K*B, C, ...]`; γ, β are `[K, C]`."""

    def configure(self, layer: nn.Module) -> None:
        norm = cast(nn.GroupNorm, layer)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.shape = [norm.num_channels]

    def normalise(self, a: Tensor) -> Tensor:
        return F.group_norm(a, self.groups, eps=self.eps)

    def affine_shape(self, a: Tensor) -> tuple[int, ...]:
        return (a.shape[1], *(1 for _ in a.shape[2:]))


class StackedLayerNorm(_StackedNorm):
    """For folded inputs `[K*B, ..., *normalized_shape]`; γ, β are `[K, *normalized_shape]`."""

    def configure(self, layer: nn.Module) -> None:
        norm = cast(nn.LayerNorm, layer)
        self.shape, self.eps = list(norm.normalized_shape), norm.eps

    def normalise(self, a: Tensor) -> Tensor:
        return F.layer_norm(a, self.shape, eps=self.eps)

    def affine_shape(self, a: Tensor) -> tuple[int, ...]:
        broadcast = a.dim() - 1 - len(self.shape)
        return (*(1 for _ in range(broadcast)), *self.shape)
