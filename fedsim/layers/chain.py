"""Plain chains of layers, differentiated by hand: no autograd, no graph, no objects per operation.

For small models autograd's own work costs as much as the arithmetic. A model that is a `Sequential`
of linear layers and simple activations needs none of it: its backward pass is the same few products
whatever the user does with the outputs. Everything else runs on the tape of `fedsim.layers.base`.

Shapes: activations are folded, `[K*B, ...]`, as in all of `fedsim.layers`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedsim.layers.base import StackedLayer
from fedsim.layers.linear import StackedLinear


class Chain:
    """Layers that follow one another.

    Args:
        layers: In their order; what each does is known by its exact type.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self._wanted = sum(isinstance(layer, StackedLinear) for layer in layers)
        self._outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[StackedLayer, Tensor]]]:
        """Return (outputs, each stacked layer with its input, in order of execution)."""
        inputs: list[tuple[StackedLayer, Tensor]] = []
        self._outputs, fresh = [], False
        for layer in self.layers:
            if isinstance(layer, StackedLinear):
                inputs.append((layer, x))
                x = layer.run(x)
            elif isinstance(layer, nn.ReLU):
                x = torch.relu_(x) if fresh else torch.relu(x)  # nobody else needs a linear output
            elif isinstance(layer, nn.Tanh):
                x = torch.tanh(x)
            else:
                x = x.flatten(1)
            fresh = isinstance(layer, StackedLinear)
            self._outputs.append(x)
        return x, inputs

    def backward(self, g: Tensor) -> list[Tensor | None]:
        """Return the gradient of each stacked layer's output, from that of the chain's outputs.

        The gradient of the first stacked layer's input is not made.
        """
        grads: list[Tensor | None] = []
        for layer, y in zip(reversed(self.layers), reversed(self._outputs), strict=True):
            if isinstance(layer, StackedLinear):
                grads.append(g)
                if len(grads) == self._wanted:
                    break
                g = layer.back(g)
            elif isinstance(layer, nn.ReLU):
                g = torch.ops.aten.threshold_backward(g, y, 0)
            elif isinstance(layer, nn.Tanh):
                g = torch.ops.aten.tanh_backward(g, y)
        self._outputs = []
        return grads[::-1]


def chain_of(module: nn.Module) -> Chain | None:
    """Return a model whose layers are stacked as a chain, or None if it is not known to be one."""
    layers = list(_flat(module))
    plain = (nn.ReLU, nn.Tanh, nn.Flatten, nn.Identity)
    for layer in layers:
        if type(layer) not in (StackedLinear, *plain) or _hooked(layer):
            return None
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            return None
    # `Flatten` needs no backward pass in front of the first layer with weights, and only there.
    first = next((i for i, m in enumerate(layers) if isinstance(m, StackedLinear)), None)
    if first is None or any(type(m) is not nn.Flatten for m in layers[:first]):
        return None
    if any(isinstance(m, nn.Flatten) for m in layers[first:]):
        return None
    return Chain([m for m in layers if not isinstance(m, nn.Identity)])


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential and not _hooked(module):
        for child in module:
            yield from _flat(child)
    else:
        yield module


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)
