"""Whether stacked clients train exactly as each does alone, tried on two of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim import seeds
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.models.dropout import install
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
    other = {name: 0.9 * t + 0.01 for name, t in params.items()}
    changed = 1 - 2 * x if x.is_floating_point() else x
    try:
        alone = [_alone(stacked, params, changed, 0), _alone(stacked, other, x, 1)]
        both = {name: torch.stack([t, other[name]]) for name, t in params.items()}
        together = _together(stacked, both, torch.cat([changed, x]))
    except Exception as error:  # the user's own code, under conditions that it was not written for
        reason = " ".join(str(error).split())[:200]
        raise NoRuleError(
            f"the forward pass fails on stacked clients: {type(error).__name__}: {reason}"
        ) from error
    finally:
        stacked.tape.records.clear()
        stacked.tape.weights = {}
        for module in (stacked.model, stacked.module):
            install(module, (), ())
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


def _probe_loss(outputs: Tensor) -> Tensor:
    """Return a scalar that weighs every output differently."""
    weights = torch.linspace(-1, 2, outputs.numel(), device=outputs.device, dtype=outputs.dtype)
    return outputs.flatten() @ weights
