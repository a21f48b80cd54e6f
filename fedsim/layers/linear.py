"""Layer rule of `nn.Linear`, for vectors `[K*B, I]` and sequences `[K*B, ..., I]`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedsim.layers.base import Kept, StackedLayer, gram_square_norm, square_sum


class StackedLinear(StackedLayer):
    """y_kb = W_k a_kb + b_k; weight gradient Σ_b g_kb a_kbᵀ, bias gradient Σ_b g_kb.

    Squared norm of one sample's weight gradient: ‖g‖² ‖a‖² for vectors; for sequences of length T,
    from two T x T matrices where these are smaller than the gradient.
    """

    def configure(self, layer: nn.Module) -> None:
        linear = cast(nn.Linear, layer)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def run(self, a: Tensor) -> Tensor:
        weight_KOI, bias_KO = cast(Tensor, self.weight("weight")), self.weight("bias")
        a_KBI = a.reshape(len(weight_KOI), -1, a.shape[-1])
        if bias_KO is None:
            y = torch.bmm(a_KBI, weight_KOI.transpose(1, 2))
        else:
            y = torch.baddbmm(bias_KO.unsqueeze(1), a_KBI, weight_KOI.transpose(1, 2))
        return y.view(*a.shape[:-1], self.out_features)

    def back(self, g: Tensor) -> Tensor:
        """Return the gradient of the inputs, from that of the outputs."""
        weight_KOI = cast(Tensor, self.weight("weight"))
        g_KBO = g.reshape(len(weight_KOI), -1, g.shape[-1])
        return torch.bmm(g_KBO, weight_KOI).view(*g.shape[:-1], weight_KOI.shape[-1])

    def instantiate(self, parameter: str, a: Tensor, g: Tensor) -> Tensor:
        g_NTO = g.reshape(len(g), -1, g.shape[-1])
        if parameter == "bias":
            return g_NTO.sum(1)
        return torch.bmm(g_NTO.transpose(1, 2), a.reshape(len(a), -1, a.shape[-1]))

    def square_norm(self, parameter: str, a: Tensor, g: Tensor, kept: Kept) -> Tensor:
        if a.dim() == 2:  # of rank one
            return square_sum(g) if parameter == "bias" else square_sum(g) * square_sum(a)
        inputs, outputs, length = a.shape[-1], g.shape[-1], a.shape[1:-1].numel()
        if parameter == "weight" and 2 * length**2 <= inputs * outputs:
            return gram_square_norm(a.reshape(-1, length, inputs), g.reshape(-1, length, outputs))
        return super().square_norm(parameter, a, g, kept)

    def add_(self, parameter: str, target: Tensor, a: Tensor, g: Tensor, alpha: float) -> None:
        g_KBO = g.reshape(len(target), -1, g.shape[-1])
        if parameter == "weight":
            a_KBI = a.reshape(len(target), -1, a.shape[-1])
            target.baddbmm_(g_KBO.transpose(1, 2), a_KBI, alpha=alpha)
        else:
            target.add_(g_KBO.sum(1), alpha=alpha)
