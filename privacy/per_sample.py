"""The weighted sum of one client's per-sample gradients, by Opacus (or `torch.func`).

    S = Σ_b w_b g_b,   w_b = weights(‖g_b‖²)

    ghost      Opacus' ghost clipping: norms without gradients (Linear, Embedding; other layers one
               at a time), then a second backward of Σ w_b ℓ_b
    hooks      Opacus' per-sample gradients, all of them at once in memory
    functorch  `vmap(grad)` of the client half's whole loss: what the hooks cannot see through

Which one: the first in this order that is right on samples of this run, where right means that its
norms are those of one backward per sample, by autograd (`choose`). That also finds what is known to
go wrong silently: a Linear given inputs of different rank, a padding row that is skipped.

Source: Opacus 1.6.0; Lee and Kifer 2021 (arXiv:2009.03106), Li et al. 2022 (arXiv:2110.05679).
"""

from __future__ import annotations

import abc
import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.grad_sample.linear import compute_linear_norm_sample
from torch import Tensor, nn

from fedsim.client.half import Batch, ClientContext, ClientHalf
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import per_sample
from fedsim.errors import ConfigError
from fedsim.models.dropout import KeyedDropout, install
from fedsim.records import Params

Method = Literal["ghost", "hooks", "functorch"]
METHODS: tuple[Method, ...] = ("ghost", "hooks", "functorch")

Weights = Callable[[Params], Tensor | Params]
"""name -> squared norms `[1, B]` -> weights `[1, B]`, or name -> such."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class PerSample(abc.ABC):
    """Sums up one client's per-sample gradients.

    Attributes:
        module: What it runs: the run's model, or a copy of it.
    """

    def __init__(self, runtime: ClientRuntime) -> None:
        self.runtime = runtime
        self.module = runtime.model
        self.trainable = runtime.trainable

    @abc.abstractmethod
    def weighted_sum(
        self,
        params: Params,
        batch: Batch,
        context: ClientContext,
        weights: Weights,
        dropout: Sequence[torch.Generator],
    ) -> tuple[Params, Tensor]:
        """Return (Σ_b w_b g_b by trainable tensor, the samples' losses `[B]`); B >= 1."""


class _Hooked(PerSample):
    """What the two kinds of Opacus' hooks have in common."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__(runtime)
        half = runtime.half
        if half.overrides("loss"):
            raise NotImplementedError(f"{type(half).__name__} calls the model itself")
        self.module = copy.deepcopy(runtime.model)
        self.tensors: dict[str, Tensor] = dict(self.module.named_parameters())
        self.tensors |= dict(self.module.named_buffers())

    def outputs(self, params: Params, batch: Batch, dropout: Sequence[torch.Generator]) -> Tensor:
        with torch.no_grad():
            for name, tensor in params.items():
                self.tensors[name].copy_(tensor)
        self.module.train()
        install(self.module, dropout, [len(batch.y)] if dropout else [])
        outputs: Tensor = self.module(batch.x)
        return outputs

    def losses(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        half = self.runtime.half
        if half.overrides("criterion"):
            return per_sample(half, outputs, batch, context)
        return half.sample_losses(self.runtime.dataset.task, outputs, batch.y)


class Ghost(_Hooked):
    """Opacus' ghost clipping; flat weights only, since one backward makes all gradients."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__(runtime)
        for layer in self.module.modules():
            if isinstance(layer, nn.Embedding):  # Opacus takes views of its input
                layer.register_forward_pre_hook(_contiguous)
        self.hooks = GradSampleHooksFastGradientClipping(
            self.module, loss_reduction="sum", strict=True
        )
        samplers = {**self.hooks.NORM_SAMPLERS, nn.Linear: _linear_norms}
        self.hooks.NORM_SAMPLERS = samplers

    def weighted_sum(
        self,
        params: Params,
        batch: Batch,
        context: ClientContext,
        weights: Weights,
        dropout: Sequence[torch.Generator],
    ) -> tuple[Params, Tensor]:
        masks = [generator.get_state() for generator in dropout]
        self.hooks.enable_hooks()
        losses_B = self.losses(self.outputs(params, batch, dropout), batch, context)
        _backward(losses_B.sum(), retain_graph=True)
        own = {name: self.tensors[name] for name in self.trainable}
        square_norms = {
            name: tensor._norm_sample.square().unsqueeze(0)  # type: ignore[attr-defined]
            for name, tensor in own.items()
        }
        weight = weights(square_norms)
        if not isinstance(weight, Tensor):
            raise NotImplementedError("ghost clipping has one weight per sample for all layers")
        self.module.zero_grad()
        self.hooks.disable_hooks()
        weighted_B = losses_B
        good_B = torch.isfinite(torch.stack(list(square_norms.values()))).all(0)[0]
        if not bool(good_B.all()):  # their weight is 0, but 0 times infinity would be no number
            for generator, mask in zip(dropout, masks, strict=True):
                generator.set_state(mask)
            good = Batch(x=_blank(batch.x, good_B), y=_blank(batch.y, good_B))
            weighted_B = self.losses(self.outputs(params, good, dropout), good, context)
        _backward((weight[0] * weighted_B).sum())
        sums = {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach()
            for name, tensor in own.items()
        }
        for tensor in own.values():
            tensor.grad = None
            del tensor._norm_sample  # type: ignore[attr-defined]
        return sums, losses_B.detach()


class Hooks(_Hooked):
    """Opacus' per-sample gradients."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__(runtime)
        self.hooks = GradSampleHooks(self.module, loss_reduction="sum", strict=True)

    def weighted_sum(
        self,
        params: Params,
        batch: Batch,
        context: ClientContext,
        weights: Weights,
        dropout: Sequence[torch.Generator],
    ) -> tuple[Params, Tensor]:
        losses_B = self.losses(self.outputs(params, batch, dropout), batch, context)
        _backward(losses_B.sum())
        own = {name: self.tensors[name] for name in self.trainable}
        rows = {
            name: tensor.grad_sample.detach()  # type: ignore[attr-defined]
            for name, tensor in own.items()
        }
        sums = _contract(rows, weights)
        for tensor in own.values():  # else they stay until the next backward: B models' worth
            tensor.grad = None
            tensor.grad_sample = None  # type: ignore[attr-defined]
        return sums, losses_B.detach()


class Functorch(PerSample):
    """`vmap(grad)` over samples, of whatever the client half calls its loss."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__(runtime)
        if runtime.drops:
            raise NotImplementedError("dropout draws its masks outside of torch.func")

    def weighted_sum(
        self,
        params: Params,
        batch: Batch,
        context: ClientContext,
        weights: Weights,
        dropout: Sequence[torch.Generator],
    ) -> tuple[Params, Tensor]:
        self.runtime.model.train()
        loss = _alone(self.runtime.half, params, context)
        trained = {name: params[name] for name in self.trainable}
        gradient = torch.func.grad_and_value(loss)
        rows, losses_B = torch.vmap(gradient, in_dims=(None, 0, 0))(trained, batch.x, batch.y)
        rows = {name: grads.detach() for name, grads in rows.items()}
        return _contract(rows, weights), losses_B.detach()


_CLASSES: dict[Method, type[PerSample]] = {"ghost": Ghost, "hooks": Hooks, "functorch": Functorch}


def choose(
    runtime: ClientRuntime, asked: Literal["auto", "ghost", "hooks", "functorch"], *, flat: bool
) -> tuple[PerSample, Method, str]:
    """Return (the first method that is right here, its name, why not an earlier one).

    Args:
        runtime: The run.
        asked: A method, or `auto`.
        flat: Whether samples have one weight for all layers, which ghost clipping needs.

    Raises:
        ConfigError: None is right, or the one that was asked for is not.
    """
    reasons = []
    for method in METHODS if asked == "auto" else (asked,):
        if method == "ghost" and not flat:
            reasons.append("ghost: layers are clipped one by one")
            continue
        try:
            made = _CLASSES[method](runtime)
            _compare(made)
        except Exception as error:  # the user's own model, in a tool that was not written for it
            text = str(error).strip().split("\n")[0][:300]
            reasons.append(f"{method}: {text or type(error).__name__}")
            continue
        return made, method, "; ".join(reasons)
    raise ConfigError(
        "method: the gradients of single samples cannot be had of this model; "
        + "; ".join(reasons)
        + ". Use a model of standard layers, such as model=mlp, cnn or transformer"
    )


def _compare(made: PerSample) -> None:
    """Check norms and sums against one backward per sample, on a few of the run's samples.

    Without dropout, whose masks are drawn for a whole batch: single samples would see others.

    Raises:
        ValueError: They differ.
    """
    runtime = made.runtime
    modules = [*runtime.model.modules(), *made.module.modules()]
    dropping = [module for module in modules if isinstance(module, KeyedDropout)]
    shares = [module.p for module in dropping]
    try:
        for module in dropping:
            module.p = 0.0
        _compare_without_dropout(made)
    finally:
        for module, share in zip(dropping, shares, strict=True):
            module.p = share


def _compare_without_dropout(made: PerSample) -> None:
    runtime = made.runtime
    data, params = runtime.dataset, runtime.initial_params()
    batch = Batch(x=data.train_x[:3], y=data.train_y[:3])
    context = runtime.context(params=params, client_arrays={}, server_round=1, steps=1)
    seen: dict[str, Tensor] = {}

    def note(square_norms: Params) -> Tensor:
        seen.update(square_norms)
        return torch.ones(1, len(batch.y), device=batch.x.device, dtype=_precision(runtime))

    sums, _ = made.weighted_sum(params, batch, context, note, ())
    expected = _one_by_one(runtime, params, batch, context)
    tolerance = _TOLERANCE[_precision(runtime)]
    scale = max(float(rows.norm()) for rows in expected.values())
    for name, rows in expected.items():
        norms = rows.flatten(1).norm(dim=1)
        found = seen[name][0].sqrt()
        if not bool(((found - norms).abs() <= tolerance * (norms + 0.01 * scale)).all()):
            raise ValueError(f"its norms of the gradients of '{name}' are not those of autograd")
        if not float((sums[name] - rows.sum(0)).norm()) <= tolerance * (rows.norm() + 0.01 * scale):
            raise ValueError(f"its gradient of '{name}' is not that of autograd")


def _one_by_one(
    runtime: ClientRuntime, params: Params, batch: Batch, context: ClientContext
) -> Params:
    runtime.model.train()
    loss = _alone(runtime.half, params, context)
    rows: dict[str, list[Tensor]] = {name: [] for name in runtime.trainable}
    for x, y in zip(batch.x, batch.y, strict=True):
        leaves = {name: params[name].detach().requires_grad_() for name in rows}
        grads = torch.autograd.grad(
            loss(leaves, x, y), list(leaves.values()), materialize_grads=True
        )
        for name, grad in zip(rows, grads, strict=True):
            rows[name].append(grad)
    return {name: torch.stack(found) for name, found in rows.items()}


def _alone(
    half: ClientHalf, params: Params, context: ClientContext
) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """Return the half's loss of one sample, as if it were alone in its batch."""

    def loss(trained: Params, x: Tensor, y: Tensor) -> Tensor:
        batch = Batch(x=x.unsqueeze(0), y=y.unsqueeze(0))
        return half.loss({**params, **trained}, batch, context)

    return loss


def _linear_norms(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Return Opacus' norms, of sequences by products in float64.

    Where the terms of a sequence cancel, as of two large tokens that are nearly alike, products in
    float32 lose the norm: a sample then had up to 1.7 C.
    """
    if backprops.dim() == 2:
        norms: dict[nn.Parameter, Tensor] = compute_linear_norm_sample(
            layer, activations, backprops
        )
        return norms
    wide = [tensor.double() for tensor in activations]
    norms = compute_linear_norm_sample(layer, wide, backprops.double())
    return {parameter: norm.to(backprops.dtype) for parameter, norm in norms.items()}


def _contiguous(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


def _blank(rows: Tensor, good_B: Tensor) -> Tensor:
    """Return rows with zeros in place of those that are not good."""
    return torch.where(good_B.view(-1, *[1] * (rows.dim() - 1)), rows, 0)


def _backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the first layer's input needs no gradient
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


def _contract(rows: Params, weights: Weights) -> Params:
    """Return Σ_b w_b g_b of per-sample gradients, name -> `[B, ...]`."""
    square_norms = {
        name: grads.flatten(1).square().sum(1).unsqueeze(0) for name, grads in rows.items()
    }
    weight = weights(square_norms)
    sums = {}
    for name, grads in rows.items():
        w_B = (weight if isinstance(weight, Tensor) else weight[name])[0]
        # Not finite: its weight is 0, but 0 times infinity would be no number.
        grads = grads.where((w_B > 0).view(-1, *[1] * (grads.dim() - 1)), 0)
        sums[name] = (w_B @ grads.flatten(1)).view(grads.shape[1:])
    return sums


def _precision(runtime: ClientRuntime) -> torch.dtype:
    return next(dtype for dtype in runtime.dtypes.values() if dtype.is_floating_point)
