"""A model of single inputs, run on bags of them as well."""

from __future__ import annotations

from torch import Tensor, nn

from fedsim.models.dropout import KeyedDropout


class OnBags(nn.Module):
    """Maps `[B, *input]` to `[B, ...]` as the model itself does, `[B, k, *input]` to `[B, k, ...]`.

    Places are laid along the batch axis, so that layers see one row per input, as always.

    Args:
        model: Any module of single inputs.
        input_dims: How many axes one input has.
        places: k.
    """

    def __init__(self, model: nn.Module, input_dims: int, places: int) -> None:
        super().__init__()
        self.model = model
        self.input_dims = input_dims
        for module in model.modules():
            if isinstance(module, KeyedDropout):
                module.rows_per_sample = places

    def forward(self, x: Tensor) -> Tensor:
        """Run the model."""
        if x.dim() == self.input_dims + 1:
            alone: Tensor = self.model(x)
            return alone
        outputs: Tensor = self.model(x.flatten(0, 1))
        return outputs.view(*x.shape[:2], *outputs.shape[1:])
