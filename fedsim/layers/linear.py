"""Layer rule of `nn.Linear`, for vectors `[K*B, I]` and sequences `[K*B, ..., I]`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedsim.layers.base import StackedLayer
from fedsim.records import Params


class StackedLinear(StackedLayer):
    """y_kb = W_k a_kb + b_k; weight gradient Σ_b g_kb a_kbᵀ, bias gradient Σ_b g_kb."""

    def configure(self, layer: nn.Module) -> None:
        self.out_features = cast(nn.Linear, layer).out_features

    def run(self, a: Tensor) -> Tensor:
        weight_KOI, bias_KO = cast(Tensor, self.weight("weight")), self.weight("bias")
        a_KBI = a.reshape(len(weight_KOI), -1, a.shape[-1])
        if bias_KO is None:
            y = torch.bmm(a_KBI, weight_KOI.transpose(1, 2))
        else:
            y = torch.baddbmm(bias_KO.unsqueeze(1), a_KBI, weight_KOI.transpose(1, 2))
        return y.view(*a.shape[:-1], self.out_features)

    def contract_(self, into: Params, a: Tensor, g: Tensor, alpha: float) -> None:
        g_KBO = g.reshape(self.tape.active, -1, g.shape[-1])
        if (weight := self.rows(into, "weight")) is not None:
            a_KBI = a.reshape(self.tape.active, -1, a.shape[-1])
            weight.baddbmm_(g_KBO.transpose(1, 2), a_KBI, alpha=alpha)
        if (bias := self.rows(into, "bias")) is not None:
            bias.add_(g_KBO.sum(1), alpha=alpha)
