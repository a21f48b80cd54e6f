"""Dropout whose masks are a function of (seed, round, client), not of a global generator.

    y = x * keep / (1 - p),   keep ~ Bernoulli(1 - p) per value       (Srivastava et al., JMLR 2014)

The engine installs one generator per client before each step. The clients of a step lie one after
another along the batch axis, each in a block of equal size whose first `counts[k]` rows are its
samples and whose other rows are padding. Masks are drawn for the samples only, layer after layer in
the order of the forward pass, so a client draws the same masks alone and beside others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.errors import ConfigError

# These draw from torch's global generator, in ways that `KeyedDropout` does not reproduce.
_UNKEYED = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)


class KeyedDropout(nn.Module):
    """Drop each value with probability `p` and scale the others by 1 / (1 - p), when training.

    In evaluation, or with p = 0, the identity. Masks are drawn in float32 on the CPU whatever the
    model's device and dtype, so that all of them see the same masks.

    Where a sample is a bag, it has `rows_per_sample` rows.

    Args:
        p: Probability of dropping a value, in [0, 1].

    Raises:
        ConfigError: `p` is outside [0, 1].
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ConfigError(f"dropout: {p!r} is out of range; allowed: [0, 1]")
        self.p = p
        self.rows_per_sample = 1
        self.generators: Sequence[torch.Generator] = ()
        self.counts: Sequence[int] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K * block, ...]` to the same shape; padding rows become 0 when training.

        Raises:
            RuntimeError: No generators are installed, or the rows do not fit the counts.
        """
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return torch.zeros_like(x)
        keep = self._draw(x.shape).to(x.device)
        # `where` and not a product, so that a non-finite padding row cannot spread as 0 * inf.
        return torch.where(keep, x / (1 - self.p), 0)

    def _draw(self, shape: torch.Size) -> Tensor:
        clients, rows = len(self.generators), shape[0]
        if not clients:
            raise RuntimeError(
                "dropout in training has no generators; call fedsim.models.dropout.install("
                "model, generators, counts) before each step, or model.eval() for evaluation"
            )
        block = rows // clients
        counts = [count * self.rows_per_sample for count in self.counts]
        if rows % clients or max(counts) > block:
            raise RuntimeError(
                f"dropout: {rows} rows do not hold {clients} blocks of equal size with "
                f"{counts} samples"
            )
        uniform = torch.zeros(clients, block, *shape[1:])
        for k, generator in enumerate(self.generators):
            uniform[k, : counts[k]].uniform_(generator=generator)
        # Padding stays at 0 and is thereby dropped.
        return (uniform >= self.p).view(shape)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows between the brackets."""
        return f"p={self.p}"


def install(model: nn.Module, generators: Sequence[torch.Generator], counts: Sequence[int]) -> None:
    """Give all dropout layers of `model` the generators of the next step.

    All layers share one generator per client. Installing two empty sequences takes them away again.

    Args:
        model: Any module; one without `KeyedDropout` is left as it is.
        generators: One CPU generator per client, K of them, in the order of the batch axis.
        counts: Samples of each client in its block of rows, each at least 0, K of them.

    Raises:
        ValueError: `generators` and `counts` differ in length, or a count is negative.
    """
    if len(generators) != len(counts) or any(count < 0 for count in counts):
        raise ValueError(f"{len(generators)} generators do not fit the counts {list(counts)}")
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.generators = generators
            module.counts = counts


def replace_dropout(model: nn.Module) -> nn.Module:
    """Replace every `nn.Dropout` of a user's own model by `KeyedDropout`, in place.

    Calls to `torch.nn.functional.dropout` inside a `forward` cannot be seen from outside; write
    them as layers.

    Returns:
        `model`, or its replacement where `model` itself is a dropout layer.

    Raises:
        ConfigError: A layer draws from torch's global generator in another way.
    """
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Dropout:
            keyed = KeyedDropout(module.p).train(module.training)
            if not path:
                return keyed
            model.set_submodule(path, keyed)
        elif isinstance(module, _UNKEYED):
            raise ConfigError(
                f"model: layer '{path}' is a {type(module).__name__}, whose random draws cannot be "
                "repeated per client; use torch.nn.Dropout or fedsim.models.dropout.KeyedDropout"
            )
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout > 0:
            raise ConfigError(
                f"model: layer '{path}' is a {type(module).__name__} with dropout={module.dropout} "
                "inside, whose random draws cannot be repeated per client; give it dropout=0 and "
                "put a torch.nn.Dropout layer after it"
            )
    return model
