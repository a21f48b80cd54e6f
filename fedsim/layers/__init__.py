"""Layer rules: K clients' copies of one layer, run and updated together.

Activations keep K folded into the batch axis, `[K*B, ...]`, so that everything without parameters
(ReLU, pooling, residual sums, reshapes, the user's own forward code) runs as it is written; only a
layer with parameters needs a rule. A rule knows how to run K different weights at once, how to
contract recorded inputs and output gradients into a weight gradient that is accumulated in place
(a plain SGD step needs no gradient buffer and no autograd over parameters), and the norm of each
sample's weight gradient. Together these are differentially private SGD by book-keeping (Bu et al.,
arXiv:2210.00038): one backward pass for the output gradients, norms, one contraction weighted by
the clipping factors.

One file per layer type; add one, list it in `RULES`, and the tests cover it.
"""

from __future__ import annotations

from torch import nn

from fedsim.layers.base import StackedLayer
from fedsim.layers.conv import StackedConv1d, StackedConv2d
from fedsim.layers.embedding import StackedEmbedding
from fedsim.layers.linear import StackedLinear
from fedsim.layers.norm import StackedGroupNorm, StackedLayerNorm

RULES: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: StackedLinear,
    nn.Conv1d: StackedConv1d,
    nn.Conv2d: StackedConv2d,
    nn.GroupNorm: StackedGroupNorm,
    nn.LayerNorm: StackedLayerNorm,
    nn.Embedding: StackedEmbedding,
}
"""Exact layer type -> its rule. Sub-classes may change `forward`, so they have none."""

__all__ = ["RULES", "StackedLayer"]
