"""Small transformer encoder that sorts sequences of tokens into classes.

    h_0 = token embedding + learned position embedding
    h   = h + attention(LayerNorm(h)); h = h + mlp(LayerNorm(h))     every position sees all others
    z   = head(mean of LayerNorm(h) over the positions that are no padding)

The blocks, their initialisation and their sources are those of `fedsim.models.transformer`, without
the causal mask. With no block at all it is a bag of embeddings (Joulin et al., "Bag of Tricks for
Efficient Text Classification", arXiv:1607.01759) with positions and a LayerNorm.

All parameters lie in Linear, Embedding and LayerNorm layers, each used once per forward pass and
none shared, so that per-sample gradient norms have a closed form in each. The padding token is an
ordinary row of the embedding, and no `padding_idx`: what sets that row's gradient to zero is done
after the norms are taken, and they would disagree. It is masked instead, so its row has no gradient
but where a whole sequence is padding.

Shapes: B samples, T positions, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart
from fedsim.models.dropout import KeyedDropout
from fedsim.models.shapes import sequence_length
from fedsim.models.transformer import Block, check_heads, initialise, vocabulary
from fedsim.parts import Range

_FAR = -1e4
"""Added to the attention scores of padding. Finite: a row of nothing but -inf would be NaN."""


@dataclass(frozen=True, kw_only=True)
class TextClassifier(ModelPart):
    """An encoder whose longest input is the length of the data set's sequences.

    Attributes:
        width: Size of the hidden state of each position, a multiple of `heads`.
        layers: Attention and MLP pairs; 0 for a bag of embeddings.
        heads: Attention heads per layer.
        dropout: Probability of dropping a value after the embedding and after each branch.
        padding: The token that is left out of attention and mean; null: every position counts. A
            sequence of nothing but padding counts in full.
        vocabulary: Number of distinct tokens; null: as many as the data set says that there are
            (`Dataset.num_tokens`), else one more than the largest token in the data.
    """

    width: Annotated[int, Range(ge=1)] = 64
    layers: Annotated[int, Range(ge=0)] = 1
    heads: Annotated[int, Range(ge=1)] = 4
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    padding: Annotated[int | None, Range(ge=0)] = 0
    vocabulary: Annotated[int | None, Range(ge=1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: int64 `[B, T]` -> `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not token sequences, or the targets are not one class per
                sequence; `vocabulary` is too small for the data.
        """
        length = sequence_length(dataset)
        if dataset.task == "classification" and dataset.train_y.ndim == 2:
            raise ConfigError(
                f"model: data set '{dataset.name}' has one target per position, and a text "
                "classifier gives one output per sequence; use model=transformer"
            )
        rows = vocabulary(dataset, self.vocabulary)
        model = _Encoder(self, rows, length, dataset.num_outputs)
        initialise(model, max(1, self.layers))
        return model


class _Encoder(nn.Module):
    """The module that `TextClassifier.build` makes."""

    def __init__(self, part: TextClassifier, rows: int, length: int, outputs: int) -> None:
        super().__init__()
        self.padding = part.padding
        self.tokens = nn.Embedding(rows, part.width)
        self.positions = nn.Embedding(length, part.width)
        self.dropout = KeyedDropout(part.dropout)
        self.blocks = nn.ModuleList(
            Block(part.width, part.heads, part.dropout, causal=False) for _ in range(part.layers)
        )
        self.norm = nn.LayerNorm(part.width)
        self.head = nn.Linear(part.width, outputs)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        batch, length = tokens_BT.shape
        # One index per sample and position, as several clients may lie along the batch axis.
        positions_BT = torch.arange(length, device=tokens_BT.device).expand(batch, length)
        h_BTD = self.dropout(self.tokens(tokens_BT) + self.positions(positions_BT))
        counts_BT = self._counts(tokens_BT).to(h_BTD.dtype)
        bias_B11T = (_FAR * (1 - counts_BT)).view(batch, 1, 1, length)
        for block in self.blocks:
            h_BTD = block(h_BTD, bias_B11T)
        weights_BT = counts_BT / counts_BT.sum(1, keepdim=True)
        mean_BD = (self.norm(h_BTD) * weights_BT.unsqueeze(-1)).sum(1)
        z_BC: Tensor = self.head(mean_BD)
        return z_BC

    def _counts(self, tokens_BT: Tensor) -> Tensor:
        """Return which positions count, bool `[B, T]`; at least one of each sample."""
        if self.padding is None:
            return torch.ones_like(tokens_BT, dtype=torch.bool)
        is_word_BT = tokens_BT != self.padding
        return is_word_BT | ~is_word_BT.any(1, keepdim=True)
