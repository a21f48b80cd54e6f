"""Norms of the gradient of a parameter that one forward pass uses more than once.

A sample's gradient is then a sum over uses, and its squared norm has a term for every pair of them:
‖Σ_u G_u‖² = Σ_u ‖G_u‖² + 2 Σ_{u<v} ⟨G_u, G_v⟩. Leaving those out would let a sample pass the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.layers.base import StackedLayer, row_blocks, square_sum
from fedsim.layers.embedding import StackedEmbedding
from fedsim.layers.linear import StackedLinear


@dataclass(frozen=True)
class Use:
    """One record of a parameter.

    Attributes:
        layer: The layer that used it.
        parameter: Its name in the layer.
        a: Recorded input, folded.
        g: Gradient with respect to the output, folded.
    """

    layer: StackedLayer
    parameter: str
    a: Tensor
    g: Tensor


def shared_square_norm(uses: Sequence[Use]) -> Tensor:
    """Return the squared norm of each sample's gradient summed over all uses, `[N]`."""
    looked_up = [use for use in uses if isinstance(use.layer, StackedEmbedding)]
    multiplied = [
        use for use in uses if isinstance(use.layer, StackedLinear) and use.parameter == "weight"
    ]
    if len(looked_up) + len(multiplied) < len(uses):
        return _instantiated(uses)
    # Several uses of a linear map are one with all of their positions, and so are lookups.
    norms = [_joined(group) for group in (looked_up, multiplied) if group]
    norms += [2 * _tied(table, head) for table in looked_up for head in multiplied]
    return torch.stack(norms).sum(0).clamp_min_(0)


def _instantiated(uses: Sequence[Use]) -> Tensor:
    """Return the norms by making each sample's gradient, a block of samples at a time."""
    norms = []
    first = uses[0]
    size = first.layer.instantiate(first.parameter, first.a[:1], first.g[:1]).nbytes
    for some in row_blocks(len(first.g), 2 * size):
        grads = [use.layer.instantiate(use.parameter, use.a[some], use.g[some]) for use in uses]
        norms.append(square_sum(torch.stack(grads).sum(0)))
    return torch.cat(norms)


def _joined(uses: Sequence[Use]) -> Tensor:
    layer, rows = uses[0].layer, len(uses[0].g)
    g = torch.cat([use.g.reshape(rows, -1, use.g.shape[-1]) for use in uses], 1)
    if isinstance(layer, StackedEmbedding):
        a = torch.cat([use.a.reshape(rows, -1) for use in uses], 1)
    else:
        a = torch.cat([use.a.reshape(rows, -1, use.a.shape[-1]) for use in uses], 1)
    return layer.square_norm("weight", a, g, {})


def _tied(table: Use, head: Use) -> Tensor:
    """Return ⟨G_table, G_head⟩ per sample, for an embedding whose table is a linear map's weight.

    G_table = Σ_t e(i_t) g_tᵀ and G_head = Σ_s h_s a_sᵀ, so it is Σ_{t,s} ⟨g_t, a_s⟩ h_s[i_t].
    """
    rows = len(head.g)
    i_NT = table.a.reshape(rows, -1)
    g_NTD = table.g.reshape(rows, -1, table.g.shape[-1])
    a_NSD = head.a.reshape(rows, -1, head.a.shape[-1])
    h_NSV = head.g.reshape(rows, -1, head.g.shape[-1])
    pairs = i_NT.shape[1] * a_NSD.shape[1]
    blocks = []
    for some in row_blocks(rows, 2 * pairs * h_NSV.element_size()):
        products_NST = torch.bmm(a_NSD[some], g_NTD[some].transpose(1, 2))
        at_tokens_NST = h_NSV[some].gather(2, i_NT[some].unsqueeze(1).expand(products_NST.shape))
        blocks.append(products_NST.mul_(at_tokens_NST).sum((1, 2)))
    return torch.cat(blocks)
