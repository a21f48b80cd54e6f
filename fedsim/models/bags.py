"""A model of single inputs, run on bags of them as well."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
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


def on_bags(model: nn.Module, dataset: Dataset) -> nn.Module:
    """Return a model of single inputs as one of a data set's samples, which may be bags.

    Raises:
        ConfigError: The model mixes the rows of a batch, and some rows are padding.
    """
    if dataset.bags is None:
        return model
    places = dataset.bags.places
    if float(dataset.train_y[:, -1].min()) < places:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                raise ConfigError(
                    f"model: {type(module).__name__} '{name}' takes its statistics from all rows "
                    "of a batch, and bags of fewer samples than others are padded with rows that "
                    "do not count; use data.rest=drop, or a model with GroupNorm"
                )
    return OnBags(model, len(dataset.input_shape), places)
