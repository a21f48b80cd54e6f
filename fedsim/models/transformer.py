"""Small decoder-only transformer for token sequences, such as the characters of a text.

    h_0 = token embedding + learned position embedding
    h   = h + attention(LayerNorm(h))     causal: position t sees positions 0..t
    h   = h + mlp(LayerNorm(h))           linear, GELU, linear
    z   = head(LayerNorm(h))

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2, 2019) for the
architecture and its initialisation: normal with std 0.02, output projections of the residual
branches divided by sqrt(2 layers), biases zero; Xiong et al. (arXiv:2002.04745) for the LayerNorm
in front of each branch; Press and Wolf (arXiv:1608.05859) for the tied head.

Shapes: B samples, T positions, D width, H heads, V outputs.

Differs from the paper: sizes; no padding mask: every position of a sequence counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart
from fedsim.models.dropout import KeyedDropout
from fedsim.models.shapes import sequence_length
from fedsim.parts import Range

_STD = 0.02
_EXPANSION = 4

Pool = Literal["none", "mean", "last"]


@dataclass(frozen=True, kw_only=True)
class Transformer(ModelPart):
    """A causal transformer; its context is the length of the data set's sequences.

    Attributes:
        width: Size of the hidden state of each position, a multiple of `heads`.
        layers: Attention and MLP pairs.
        heads: Attention heads per layer.
        dropout: Probability of dropping a value after the embedding and after each branch.
        pool: `"none"`: one output per position, for next-token prediction. `"mean"` or `"last"`:
            one output per sequence, from the mean over positions or from the last position.
        tied: The head shares the token embedding's weights and has no bias; needs `pool: none` and
            as many outputs as tokens. Both layers then hold the *same* parameter.
        vocabulary: Number of distinct tokens; null: as many as the data set says that there are
            (`Dataset.num_tokens`), else one more than the largest token in the data, and with
            `pool: none` at least the number of outputs.
    """

    width: Annotated[int, Range(ge=1)] = 128
    layers: Annotated[int, Range(ge=1)] = 2
    heads: Annotated[int, Range(ge=1)] = 4
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    pool: Pool = "none"
    tied: bool = False
    vocabulary: Annotated[int | None, Range(ge=1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)
        if self.tied and self.pool != "none":
            raise ConfigError(
                f"model.tied: true needs model.pool=none, got model.pool={self.pool}; "
                "a pooled output has no token embedding to share: type model.tied=false"
            )

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the module: int64 `[B, T]` -> `[B, T, num_outputs]`, pooled `[B, num_outputs]`.

        Raises:
            ConfigError: The inputs are not token sequences; `pool` does not fit the targets;
                `vocabulary` is too small for the data, or with `tied` differs from the outputs.
        """
        length = sequence_length(dataset)
        self._check_pool(dataset)
        model = _Decoder(self, self._vocabulary(dataset), length, dataset.num_outputs)
        initialise(model, self.layers)
        return model

    def _check_pool(self, dataset: Dataset) -> None:
        per_position = dataset.task == "classification" and dataset.train_y.ndim == 2
        if per_position != (self.pool == "none"):
            targets = "one target per position" if per_position else "one target per sequence"
            instead = "model.pool=none" if per_position else "model.pool=last or model.pool=mean"
            raise ConfigError(
                f"model.pool: {self.pool} does not fit data set '{dataset.name}', which has "
                f"{targets}; type {instead}"
            )

    def _vocabulary(self, dataset: Dataset) -> int:
        least = dataset.num_outputs if self.pool == "none" else 0
        given = vocabulary(dataset, self.vocabulary, least)
        if self.tied and given != dataset.num_outputs:
            raise ConfigError(
                f"model.tied: true needs as many outputs as tokens, data set '{dataset.name}' has "
                f"{dataset.num_outputs} outputs and {given} tokens; type model.tied=false"
            )
        return given


class _Decoder(nn.Module):
    """The module that `Transformer.build` makes."""

    def __init__(self, part: Transformer, vocabulary: int, length: int, outputs: int) -> None:
        super().__init__()
        self.pool = part.pool
        self.tokens = nn.Embedding(vocabulary, part.width)
        self.positions = nn.Embedding(length, part.width)
        self.dropout = KeyedDropout(part.dropout)
        self.blocks = nn.Sequential(*(_block(part) for _ in range(part.layers)))
        self.norm = nn.LayerNorm(part.width)
        self.head = nn.Linear(part.width, outputs, bias=not part.tied)
        if part.tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        batch, length = tokens_BT.shape
        # One index per sample and position, not one per position: several clients may lie along
        # the batch axis, and each looks up its own embedding.
        positions_BT = torch.arange(length, device=tokens_BT.device).expand(batch, length)
        h_BTD = self.dropout(self.tokens(tokens_BT) + self.positions(positions_BT))
        h_BTD = self.norm(self.blocks(h_BTD))
        if self.pool == "mean":
            h_BTD = h_BTD.mean(1)
        elif self.pool == "last":
            h_BTD = h_BTD[:, -1]
        z_BTV: Tensor = self.head(h_BTD)
        return z_BTV


def _block(part: Transformer) -> Block:
    return Block(part.width, part.heads, part.dropout, causal=True)


class Block(nn.Module):
    """One attention and one MLP branch: `[B, T, D]` -> `[B, T, D]`.

    Args:
        width: D, a multiple of `heads`.
        heads: Attention heads.
        dropout: Probability of dropping a value after each branch.
        causal: Each position sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, _EXPANSION * width)
        self.mlp_out = nn.Linear(_EXPANSION * width, width)
        self.dropout = KeyedDropout(dropout)

    def forward(self, h_BTD: Tensor, bias_B11T: Tensor | None = None) -> Tensor:
        """Run both branches; `bias_B11T` is added to the scores of each position attended to."""
        h_BTD = h_BTD + self.dropout(self._attend(self.attention_norm(h_BTD), bias_B11T))
        mlp_BTD = self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(h_BTD))))
        out_BTD: Tensor = h_BTD + self.dropout(mlp_BTD)
        return out_BTD

    def _attend(self, h_BTD: Tensor, bias_B11T: Tensor | None = None) -> Tensor:
        batch, length, width = h_BTD.shape
        qkv = self.query_key_value(h_BTD).view(batch, length, 3, self.heads, width // self.heads)
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed_BHTd = functional.scaled_dot_product_attention(
            q_BHTd, k_BHTd, v_BHTd, attn_mask=bias_B11T, is_causal=self.causal
        )
        out_BTD: Tensor = self.attention_out(mixed_BHTd.transpose(1, 2).reshape(h_BTD.shape))
        return out_BTD


def initialise(model: nn.Module, layers: int) -> None:
    """Draw GPT-2's initial weights for a model of so many blocks; see the top of this file."""
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            branch_end = name.endswith(("attention_out", "mlp_out"))
            std = _STD / math.sqrt(2 * layers) if branch_end else _STD
            nn.init.normal_(layer.weight, std=std)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that does not divide into the heads.

    Raises:
        ConfigError: It does not.
    """
    if width % heads:
        raise ConfigError(
            f"model.width: {width} is not a multiple of model.heads={heads}; "
            f"the next one is model.width={math.ceil(width / heads) * heads}"
        )


def vocabulary(dataset: Dataset, given: int | None, least: int = 0) -> int:
    """Return the rows of the token embedding.

    Args:
        dataset: Of tokens.
        given: As the scenario says; None: as many as the data part says that there are, else one
            more than the largest token in the data.
        least: At least so many, where none are given.

    Raises:
        ConfigError: `given` is too small for the data.
    """
    parts = [x for x in (dataset.train_x, dataset.test_x) if x.numel()]
    needed = max((int(x.max()) + 1 for x in parts), default=1)
    if given is None:
        return max(needed if dataset.num_tokens is None else dataset.num_tokens, least)
    if given < needed:
        raise ConfigError(
            f"model.vocabulary: {given} is too small, the largest token of data set "
            f"'{dataset.name}' is {needed - 1}; type model.vocabulary={needed} or more"
        )
    return given
