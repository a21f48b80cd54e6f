"""Whether the gradient of one sample depends on no other sample of its batch: tried, at set-up.

Per-sample clipping bounds what one sample adds to the sum only if it changes none of the other
terms. A batch normalisation, a mean over the batch, a loss that is normalised by the batch break
that, and with it every claim: one sample then moves the others' gradients by up to 75 % of their
norm. Validators know layer types; this looks at what the model does.

    for two batches that differ in sample j alone:  ∇ℓ_i must be equal to the last bit, i ≠ j
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim import seeds
from fedsim.client.half import Batch
from fedsim.client.objective import sample_losses
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import per_sample
from fedsim.errors import ConfigError
from fedsim.models.dropout import install
from fedsim.records import Params

_SAMPLES = 4


def check_independence(runtime: ClientRuntime) -> None:
    """Check that no sample of a batch has a say in another's gradient, or in a buffer.

    Raises:
        ConfigError: It has; with the reason that Opacus' validator gives, if it knows one.
    """
    data = runtime.dataset
    x, y = data.train_x[:_SAMPLES], data.train_y[:_SAMPLES]
    runtime.model.train()
    state = {name: buffer.clone() for name, buffer in runtime.model.named_buffers()}
    state |= runtime.initial_params()
    before = {name: tensor.clone() for name, tensor in state.items()}
    reference = _gradients(runtime, x, y, state)
    for name, tensor in state.items():
        if not torch.equal(tensor, before[name]):
            raise _refused(runtime, f"training writes what it has seen into '{name}'")
    for j in range(len(x)):
        # Bits depend on the shapes that a kernel is called with, so these stay the same.
        other_x, other_y = x.clone(), y.clone()
        other_x[j], other_y[j] = _changed(x, j), y[(j + 1) % len(y)]
        moved = _gradients(runtime, other_x, other_y, before)
        for i, (was, now) in enumerate(zip(reference, moved, strict=True)):
            for name, a, b in zip(runtime.trainable, was, now, strict=True):
                if i != j and not torch.equal(a, b):
                    share = float((a - b).norm() / a.norm().clamp(min=1e-30))
                    raise _refused(
                        runtime,
                        f"changing one sample moves another's gradient of '{name}' by {share:.1%} "
                        "of its norm",
                    )


def _changed(x: Tensor, j: int) -> Tensor:
    """Return another input in place of x_j: far from it, but one that the model can take."""
    if x.is_floating_point():
        return 1 - 2 * x[j]
    return x[(j + 1) % len(x)].flip(0) if x[j].dim() else x[(j + 1) % len(x)]


def _gradients(runtime: ClientRuntime, x: Tensor, y: Tensor, params: Params) -> list[list[Tensor]]:
    """Return the gradient of each sample's loss in one joint batch, by sample and tensor.

    Buffers that the model writes into are those in `params`: its own stay as they are.
    """
    leaves = {name: params[name].detach().requires_grad_() for name in runtime.trainable}
    if runtime.drops:
        install(runtime.model, [seeds.torch_rng(0, 0, 0, "probe")], [len(x)])
    outputs = functional_call(runtime.model, {**params, **leaves}, (x,))
    install(runtime.model, (), ())
    if runtime.half.overrides("criterion"):
        context = runtime.context(params=params, client_arrays={}, server_round=1, steps=1)
        losses = per_sample(runtime.half, outputs, Batch(x=x, y=y), context)
    else:
        losses = sample_losses(runtime.dataset.task, outputs, y)
    inputs = list(leaves.values())
    return [
        list(torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True))
        for loss in losses
    ]


def _refused(runtime: ClientRuntime, what: str) -> ConfigError:
    from opacus.validators import ModuleValidator  # takes 2 s

    known = "; ".join(str(error) for error in ModuleValidator.validate(runtime.model))
    reason = f". Opacus' validator: {known}" if known else ""
    return ConfigError(
        f"model: {type(runtime.model).__name__} mixes the samples of a batch ({what}), so what one "
        "sample contributes cannot be bounded; take batch normalisation (or whatever looks at the "
        f"whole batch) out of it, e.g. nn.GroupNorm in its place{reason}"
    )
