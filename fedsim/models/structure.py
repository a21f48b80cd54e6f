"""What a strategy may know of a model: its layers in order, their kinds, the names they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One module that holds tensors itself.

    Attributes:
        path: Its place in the model.
        kind: Its type.
        parameters, buffers: The names of its tensors, as in the model's `Params`; a tensor that
            layers share has the same name in each.
    """

    path: str
    kind: type[nn.Module]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names of its tensors."""
        return self.parameters + self.buffers


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's unique parameters and persistent buffers, by name: what clients send.

    Tied parameters appear once, under their first name.
    """
    persistent = model.state_dict(keep_vars=True)
    state: dict[str, Tensor] = dict(model.named_parameters())
    return state | {name: b for name, b in model.named_buffers() if name in persistent}


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a model that hold tensors, in the order of their definition.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> [layer.names for layer in layers_of(model)]
        [('0.weight', '0.bias'), ('2.weight',)]
    """
    first_name = {id(tensor): name for name, tensor in model.named_parameters()}
    first_name |= {id(tensor): name for name, tensor in model.named_buffers()}
    persistent = model.state_dict(keep_vars=True)
    layers = []
    for path, module in model.named_modules():
        parameters = [first_name[id(p)] for _, p in module.named_parameters(recurse=False)]
        buffers = [
            first_name[id(buffer)]
            for name, buffer in module.named_buffers(path, recurse=False)
            if name in persistent
        ]
        if parameters or buffers:
            layers.append(
                Layer(
                    path=path,
                    kind=type(module),
                    parameters=tuple(parameters),
                    buffers=tuple(buffers),
                )
            )
    return tuple(layers)


def head(layers: Sequence[Layer], count: int) -> set[str]:
    """Return the names of the tensors of the last `count` layers that have parameters.

    Raises:
        ConfigError: There are not so many.
    """
    able = [layer for layer in layers if layer.parameters]
    if count > len(able):
        raise ConfigError(
            f"head_layers: {count}, but the model has {len(able)} layers with parameters; "
            f"allowed: [0, {len(able)}]"
        )
    return {name for layer in able[len(able) - count :] for name in layer.names}
