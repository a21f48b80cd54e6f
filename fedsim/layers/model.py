"""A model whose layers hold K clients' weights: the user's own module with its layers swapped."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsim.layers import RULES
from fedsim.layers.base import Kept, StackedLayer, Tape
from fedsim.layers.chain import chain_of
from fedsim.layers.shared import Use, shared_square_norm
from fedsim.records import Params

_Kept = tuple[Tensor, int, Kept]
"""(output gradient, its version, per-sample gradients that were made of it)."""


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
        self._kept: list[_Kept | None] = []
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
        self.chain = chain_of(self.module)

    def forward(self, x: Tensor, active: int) -> Tensor:
        """Return the outputs for folded inputs `x [active*B, ...]`, recording for `contract_`."""
        self.tape.active, self.tape.rows = active, len(x)
        self.clear()
        outputs: Tensor = self.module(x)
        return outputs

    def forward_by_hand(self, x: Tensor, active: int) -> Tensor:
        """Do as `forward`, where the model is a chain, for `backward_by_hand`: without a graph."""
        if self.chain is None:
            raise NoRuleError("the model is no chain of layers that is differentiated by hand")
        self.tape.active, self.tape.rows = active, len(x)
        self.clear()
        outputs, inputs = self.chain.forward(x)
        self.tape.records.extend((layer, a, None) for layer, a in inputs)
        return outputs

    def backward_by_hand(self, grad: Tensor) -> list[Tensor | None]:
        """Return what `backward` does, from the gradient of the outputs `[active*B, ...]`."""
        return [] if self.chain is None else self.chain.backward(grad)

    def backward(self, loss: Tensor) -> list[Tensor | None]:
        """Return the gradient of a scalar with respect to each recorded layer output.

        No weight gradient is computed, nor that of the first layer's input. None where the loss
        does not depend on an output.
        """
        outputs = [edge for _, _, edge in self.tape.records if edge is not None]
        return list(torch.autograd.grad(loss, outputs, allow_unused=True))

    @torch.no_grad()
    def square_norms(self, grads: list[Tensor | None]) -> dict[str, Tensor]:
        """Return the squared L2 norm of each sample's gradient, by trainable parameter `[K, B]`.

        A parameter's norm is that of its whole gradient, over all layers that share it. Per-sample
        gradients that were made on the way are kept for the `contract_` that follows.

        Args:
            grads: What `backward` returned, of the *sum* of the samples' losses.

        Raises:
            NoRuleError: A layer saw other rows than one per sample.
        """
        clients, rows = self.tape.active, self.tape.rows
        uses: dict[str, list[Use]] = {}
        self._kept = []
        for (layer, a, _), g in zip(self.tape.records, grads, strict=True):
            self._kept.append(None if g is None else (g, g._version, {}))
            if g is None:
                continue
            for parameter in layer.trained:
                if not len(a) == len(g) == rows:
                    raise NoRuleError(
                        f"the layer of '{layer.names[parameter]}' saw {len(a)} rows for {rows} "
                        "samples, so the gradient of one sample cannot be told apart; keep the "
                        "batch axis as it is, e.g. x.flatten(1) and not x.view(-1, width)"
                    )
                use = Use(layer, parameter, a, g)
                uses.setdefault(layer.names[parameter], []).append(use)
        shared = {name for name, found in uses.items() if len(found) > 1}
        norms = {name: shared_square_norm(uses[name]).view(clients, -1) for name in shared}
        for (layer, a, _), kept in zip(self.tape.records, self._kept, strict=True):
            if kept is not None:
                norms.update(layer.square_norms(a, kept[0], kept[2], without=shared))
        for name in self.trainable:
            if name not in norms:  # the loss does not depend on it
                norms[name] = self.tape.weights[name].new_zeros(clients, rows // clients)
        return {name: norms[name] for name in self.trainable}

    @torch.no_grad()
    def without(self, grads: list[Tensor | None], good: Tensor) -> list[Tensor | None]:
        """Take samples out of what the last forward recorded: their rows become 0.

        Args:
            grads: What `backward` returned.
            good: Which rows stay, bool `[K*B]`.

        Returns:
            `grads` with zeros in the other rows.
        """

        def kept(rows: Tensor) -> Tensor:
            return torch.where(good.view(-1, *[1] * (rows.dim() - 1)), rows, 0)

        self.tape.records = [(layer, kept(a), edge) for layer, a, edge in self.tape.records]
        self._kept = []
        return [None if g is None else kept(g) for g in grads]

    @torch.no_grad()
    def contract_(
        self,
        into: Params,
        grads: list[Tensor | None],
        alpha: float,
        weights: Tensor | Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add `alpha` × the weight gradients into the first `active` rows of `into`, in place.

        Args:
            into: name -> `[K, ...]`; frozen parameters in it stay as they are.
            grads: What `backward` returned.
            alpha: E.g. −lr to take a plain SGD step.
            weights: A finite factor of each sample, `[K, B]`, such as a clipping factor; or one per
                parameter, name -> `[K, B]`. None: all 1.

        Raises:
            ValueError: `weights` are not `[K, B]`, or lack a parameter of `into`.
        """
        self._check_weights(into, weights)
        kept_of = self._kept or [None] * len(grads)
        for (layer, a, _), g, kept in zip(self.tape.records, grads, kept_of, strict=True):
            if g is None:
                continue
            same = kept is not None and kept[0] is g and kept[1] == g._version
            layer.contract_(into, a, g, alpha, weights, kept[2] if kept and same else None)
        self.clear()

    def _check_weights(self, into: Params, weights: Tensor | Mapping[str, Tensor] | None) -> None:
        if weights is None:
            return
        shape = (self.tape.active, self.tape.rows // max(1, self.tape.active))
        named = {"": weights} if isinstance(weights, Tensor) else weights
        for name, w in named.items():
            if w.shape != shape:
                of = f" for '{name}'" if name else ""
                raise ValueError(f"weights of samples{of} are {list(w.shape)}, not {list(shape)}")
        if not isinstance(weights, Tensor):
            for name in self.trainable:
                if name in into and name not in weights:
                    raise ValueError(f"no weights of samples for '{name}'")

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.tape.records.clear()
        self._kept = []


def _swap(model: nn.Module, layers: dict[str, StackedLayer]) -> nn.Module:
    """Return `model` with the layers at the given paths replaced."""
    for path, layer in layers.items():
        if not path:
            return layer
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
    return model
