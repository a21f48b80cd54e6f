"""A model whose layers hold K clients' weights: the user's own module with its layers swapped."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedsim.layers import RULES
from fedsim.layers.base import StackedLayer, Tape
from fedsim.records import Params


class NoRuleError(Exception):
    """The model has a layer, a parameter or a buffer that no layer rule covers; says which."""


class StackedModel:
    """Runs and updates K copies of a model at once.

    Args:
        model: The architecture.

    Raises:
        NoRuleError: Some of it has no rule.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tape = Tape()
        first_name = {id(p): name for name, p in model.named_parameters()}
        self.trainable = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        for path, layer in model.named_modules():
            for name, _ in layer.named_buffers(path, recurse=False):
                raise NoRuleError(f"buffer '{name}' of {type(layer).__name__} has no layer rule")
        covered: set[int] = set()
        swapped: dict[str, StackedLayer] = {}
        for path, layer in model.named_modules(remove_duplicate=False):
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            rule = RULES.get(type(layer))
            if rule is None:
                raise NoRuleError(f"{type(layer).__name__} '{path}' has no layer rule")
            names = {key: first_name[id(p)] for key, p in own.items()}
            try:
                swapped[path] = rule(layer, names, self.tape)
            except NotImplementedError as error:
                raise NoRuleError(f"{type(layer).__name__} '{path}': {error}") from error
            covered |= {id(p) for p in own.values()}
        if missing := [name for key, name in first_name.items() if key not in covered]:
            raise NoRuleError(f"parameter '{missing[0]}' belongs to no layer with a rule")
        self.module = _swap(copy.deepcopy(model), swapped)

    def forward(self, x: Tensor, active: int) -> Tensor:
        """Return the outputs for folded inputs `x [active*B, ...]`, recording for `step_`."""
        self.tape.active = active
        self.tape.records.clear()
        outputs: Tensor = self.module(x)
        return outputs

    def backward(self, loss: Tensor) -> list[Tensor | None]:
        """Return the gradient of a scalar with respect to each recorded layer output.

        No weight gradient is computed, nor that of the first layer's input. None where the loss
        does not depend on an output.
        """
        outputs = [edge for _, _, edge in self.tape.records]
        return list(torch.autograd.grad(loss, outputs, allow_unused=True))

    @torch.no_grad()
    def contract_(self, into: Params, grads: list[Tensor | None], alpha: float) -> None:
        """Add `alpha` × the weight gradients into the first `active` rows of `into`, in place."""
        for (layer, a, _), g in zip(self.tape.records, grads, strict=True):
            if g is not None:
                layer.contract_(into, a, g, alpha)
        self.tape.records.clear()


def _swap(model: nn.Module, layers: dict[str, StackedLayer]) -> nn.Module:
    """Return `model` with the layers at the given paths replaced."""
    for path, layer in layers.items():
        if not path:
            return layer
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
    return model
