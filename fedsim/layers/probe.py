"""Whether stacked clients, and their samples, are what each is alone; tried on two clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import seeds
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.models.dropout import KeyedDropout, install
from fedsim.records import Params


def probe_independence(stacked: StackedModel, params: Params, x: Tensor) -> None:
    """Check that two stacked clients get the outputs and the gradients that each gets alone.

    Swapping layers cannot see what the code between them does: mix samples (a batch normalisation
    without parameters), move the batch axis, look one position up for all samples, read a layer's
    weight itself. So two clients of different weights train one step, together and alone.

    Args:
        stacked: The model to check.
        params: One client's weights.
        x: A few inputs, `[B, ...]`.

    Raises:
        NoRuleError: The clients see each other, or the forward pass fails on them.
    """
    other = _other(params)
    changed = 1 - 2 * x if x.is_floating_point() else x
    with _trying(stacked):
        alone = [_alone(stacked, params, changed, 0), _alone(stacked, other, x, 1)]
        both = {name: torch.stack([t, other[name]]) for name, t in params.items()}
        together = _together(stacked, both, torch.cat([changed, x]))
    grads = [t for one in alone for name, t in one.items() if name]
    scale = max((float(t.norm()) for t in grads), default=0.0)
    for name, rows in together.items():
        expected = torch.stack([one[name] for one in alone])
        # Gradients that cancel exactly (of a bias in front of a normalisation) are all rounding.
        size = max(float(expected.norm()), 0.01 * scale if name else 0.0)
        if not float((rows - expected).norm()) <= 1e-3 * size:
            what = f"gradient of '{name}'" if name else "output"
            raise NoRuleError(
                f"the model mixes samples of a batch, so clients cannot be stacked (the {what} of "
                "one depends on the other)"
            )


def probe_samples(stacked: StackedModel, params: Params, x: Tensor) -> None:
    """Check that `square_norms` are the norms of the gradient that each sample gives alone.

    Clients may each train as they do alone while the samples of one are mixed, or while a layer
    sees them in another order: no matter without privacy, but a clip would bound something else.

    Args:
        stacked: The model to check.
        params: One client's weights.
        x: At least two inputs, `[B, ...]`.

    Raises:
        NoRuleError: The samples see each other, or the forward pass fails on them.
    """
    both = {name: torch.stack([t, _other(params)[name]]) for name, t in params.items()}
    inputs = torch.cat([1 - 2 * x if x.is_floating_point() else x.flip(0), x])
    with _trying(stacked):
        got = _squares_together(stacked, both, inputs)
        alone = [
            _squares_alone(stacked, {name: t[row // len(x)] for name, t in both.items()}, one)
            for row, one in enumerate(torch.split(inputs, 1))
        ]
    whole = torch.stack([sum(own.values(), x.new_zeros((), dtype=torch.float64)) for own in alone])
    for name, squares_KB in got.items():
        expected = torch.stack([own[name] for own in alone])
        # What cancels exactly is all rounding; see above.
        if not bool(
            ((squares_KB.flatten() - expected).abs() <= 1e-3 * expected + 1e-6 * whole).all()
        ):
            raise NoRuleError(
                f"the model mixes samples of a batch, so one sample's gradient of '{name}' cannot "
                "be told apart from the others'; each output must depend on its own input alone"
            )


@contextmanager
def _trying(stacked: StackedModel) -> Iterator[None]:
    """Refuse a model whose forward pass fails inside, and leave no trace in it."""
    try:
        yield
    except NoRuleError:
        raise
    except Exception as error:  # the user's own code, under conditions that it was not written for
        reason = " ".join(str(error).split())[:200]
        raise NoRuleError(
            f"the forward pass fails on stacked clients: {type(error).__name__}: {reason}"
        ) from error
    finally:
        stacked.clear()
        stacked.tape.weights = {}
        for module in (stacked.model, stacked.module):
            module.train()
            install(module, (), ())


def _other(params: Params) -> Params:
    """Return the second client's weights."""
    return {name: 0.9 * t + 0.01 for name, t in params.items()}


def _alone(stacked: StackedModel, params: Params, x: Tensor, key: int) -> Params:
    """Return one client's gradients by name, and its outputs under the name ''."""
    stacked.model.train()
    install(stacked.model, [seeds.torch_rng(0, 0, key, "probe")], [len(x)])
    leaves = {
        name: t.detach().requires_grad_(name in stacked.trainable) for name, t in params.items()
    }
    outputs = functional_call(stacked.model, leaves, (x,))
    inputs = [leaves[name] for name in stacked.trainable]
    grads = torch.autograd.grad(_probe_loss(outputs), inputs, materialize_grads=True)
    return {"": outputs.detach(), **dict(zip(stacked.trainable, grads, strict=True))}


def _together(stacked: StackedModel, params: Params, x: Tensor) -> Params:
    """Return the same for two stacked clients, each `[2, ...]`."""
    stacked.module.train()
    stacked.tape.weights = params
    generators = [seeds.torch_rng(0, 0, key, "probe") for key in range(2)]
    install(stacked.module, generators, [len(x) // 2] * 2)
    outputs = stacked.forward(x, 2)
    outputs = outputs.view(2, -1, *outputs.shape[1:])
    grads = {name: torch.zeros_like(params[name]) for name in stacked.trainable}
    loss = _probe_loss(outputs[0]) + _probe_loss(outputs[1])
    stacked.contract_(grads, stacked.backward(loss), 1.0)
    return {"": outputs.detach(), **grads}


def _squares_together(stacked: StackedModel, params: Params, x: Tensor) -> Params:
    """Return the squared norms of all samples of two clients, name -> `[2, B]`."""
    stacked.tape.weights = params
    _without_dropout(stacked.module)
    outputs = stacked.forward(x, 2)
    loss = torch.stack([_probe_loss(one) for one in torch.split(outputs, 1)]).sum()
    norms = stacked.square_norms(stacked.backward(loss))
    return {name: squares.double() for name, squares in norms.items()}


def _squares_alone(stacked: StackedModel, params: Params, x: Tensor) -> Params:
    """Return one sample's squared norms, `x [1, ...]`, by autograd, name -> `[]`."""
    _without_dropout(stacked.model)
    leaves = {
        name: t.detach().requires_grad_(name in stacked.trainable) for name, t in params.items()
    }
    inputs = [leaves[name] for name in stacked.trainable]
    loss = _probe_loss(functional_call(stacked.model, leaves, (x,)))
    grads = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return {n: g.double().square().sum() for n, g in zip(stacked.trainable, grads, strict=True)}


def _without_dropout(model: nn.Module) -> None:
    """Train, but drop nothing: a sample alone would draw another mask than in its batch."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, KeyedDropout):
            layer.eval()


def _probe_loss(outputs: Tensor) -> Tensor:
    """Return a scalar that weighs every output differently."""
    weights = torch.linspace(-1, 2, outputs.numel(), device=outputs.device, dtype=outputs.dtype)
    return outputs.flatten() @ weights
