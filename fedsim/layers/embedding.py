"""Layer rule of `nn.Embedding`, for folded token indices `[K*B, ...]`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.layers.base import Kept, StackedLayer, square_sum


class StackedEmbedding(StackedLayer):
    """y_kb = W_k[a_kb]; the gradient of row v is the sum of g where a = v."""

    def configure(self, layer: nn.Module) -> None:
        embedding = cast(nn.Embedding, layer)
        if embedding.padding_idx is not None or embedding.max_norm is not None:
            raise NotImplementedError("embedding with padding_idx or max_norm")
        if embedding.scale_grad_by_freq:
            raise NotImplementedError("embedding with scale_grad_by_freq")
        self.vocabulary = embedding.num_embeddings

    def run(self, a: Tensor) -> Tensor:
        weight_KVD = cast(Tensor, self.weight("weight"))
        if not a.is_cuda:  # there it would wait for the device in every step
            low, high = a.aminmax()
            if low < 0 or high >= weight_KVD.shape[1]:  # would read another client's table
                raise IndexError(
                    f"token {int(low if low < 0 else high)} is outside [0, {weight_KVD.shape[1]})"
                )
        y = F.embedding(self._index(a, weight_KVD.shape[1]), weight_KVD.flatten(0, 1))
        return y.view(*a.shape, weight_KVD.shape[2])

    def instantiate(self, parameter: str, a: Tensor, g: Tensor) -> Tensor:
        grads_NVD = g.new_zeros(len(g), self.vocabulary, g.shape[-1])
        index_NT1 = a.reshape(len(a), -1, 1)
        g_NTD = g.reshape(len(g), -1, g.shape[-1])
        return grads_NVD.scatter_add_(1, index_NT1.expand(g_NTD.shape), g_NTD)

    def square_norm(self, parameter: str, a: Tensor, g: Tensor, kept: Kept) -> Tensor:
        if a.dim() == 1:
            return square_sum(g)
        # Sums of g over the positions of each distinct (sample, token): no table, no T x T matrix.
        samples = torch.arange(len(a), device=a.device).unsqueeze(1)
        key_NT = a.flatten(1) + samples * self.vocabulary
        distinct, place = torch.unique(key_NT, return_inverse=True)
        sums = g.new_zeros(len(distinct), g.shape[-1])
        sums.index_add_(0, place.flatten(), g.reshape(-1, g.shape[-1]))
        return g.new_zeros(len(a)).index_add_(0, distinct // self.vocabulary, square_sum(sums))

    def add_(self, parameter: str, target: Tensor, a: Tensor, g: Tensor, alpha: float) -> None:
        index = self._index(a, self.vocabulary).flatten()
        flat = target.view(-1, target.shape[2])
        flat.index_add_(0, index, g.reshape(-1, g.shape[-1]), alpha=alpha)

    def _index(self, a: Tensor, vocabulary: int) -> Tensor:
        """Return rows of the K tables laid end to end, `[K, B, ...]`."""
        offsets = torch.arange(self.tape.active, device=a.device) * vocabulary
        a_KB = self.unfold(a)
        return a_KB + offsets.view(-1, *(1 for _ in a_KB.shape[1:]))
