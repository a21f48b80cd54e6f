"""Many small models of one kind fitted at once: SGD or Adam under `torch.func.vmap`.

    m ← β1 m + (1 − β1) g,  v ← β2 v + (1 − β2) g²,  w ← w − lr · m̂ / (√v̂ + ε)      Adam, per model
    v ← μ v + g + λ w,  w ← w − lr · v                                                SGD, per model

Adam is PyTorch's, with its defaults (β1 = 0.9, β2 = 0.999, ε = 1e-8), and so is SGD. A model whose
batch has no true sample is not moved, nor is its clock.

Shapes: K models, `[K, ...]` one row for each; B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedsim.records import Params

Optimiser = Literal["adam", "sgd"]


IGNORED: dict[Optimiser, tuple[str, ...]] = {"adam": ("momentum", "weight_decay"), "sgd": ()}
"""What of `fit`'s arguments an optimiser does not have."""

Loss = Callable[..., Tensor]
"""`loss(params, *inputs)` of one model -> each sample's loss, `[B]`."""

Gradients = Callable[..., tuple[Params, Tensor]]
"""`gradients(params, weight_KB, *inputs)` -> those of each model's weighted mean loss, name ->
`[K, ...]`, valid until the next call, and that loss, `[K]`."""

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam's moments for K models at once.

    Args:
        params: What they are of, name -> `[K, ...]`.
    """

    def __init__(self, params: Params) -> None:
        self.first = {name: torch.zeros_like(t) for name, t in params.items()}
        self.second = {name: torch.zeros_like(t) for name, t in params.items()}
        count, like = next((len(t), t) for t in params.values())
        self.steps_K = torch.zeros(count, dtype=torch.float64, device=like.device)

    def step_(self, params: Params, grads: Params, lr: float, moves_K: Tensor) -> None:
        """Take one step in place, of those models that move (bool `[K]`)."""
        self.steps_K += moves_K
        slowest, fastest = (int(t) for t in self.steps_K.aminmax())
        if slowest == fastest and bool(moves_K.all()):  # one clock: PyTorch's, in one pass
            names = list(grads)
            adam(
                [params[n] for n in names],
                [grads[n] for n in names],
                [self.first[n] for n in names],
                [self.second[n] for n in names],
                [],
                [torch.tensor(float(slowest - 1), device=grads[n].device) for n in names],
                fused=True,
                amsgrad=False,
                beta1=BETA_1,
                beta2=BETA_2,
                lr=lr,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )
            return
        t_K = self.steps_K.clamp(min=1)
        scale_K = lr * (1 - BETA_2**t_K).sqrt() / (1 - BETA_1**t_K)
        damp_K = EPSILON * (1 - BETA_2**t_K).sqrt()
        for name, grad in grads.items():
            shape = (-1, *[1] * (grad.dim() - 1))
            first, second = self.first[name], self.second[name]
            scale, damp = (v.to(grad.dtype).view(shape) for v in (scale_K, damp_K))
            moves = moves_K.view(shape)
            first.copy_(torch.where(moves, first.lerp(grad, 1 - BETA_1), first))
            faded = (BETA_2 * second).addcmul_(grad, grad, value=1 - BETA_2)
            second.copy_(torch.where(moves, faded, second))
            params[name].sub_(torch.where(moves, scale * first / (second.sqrt() + damp), 0))


def fit(
    params: Params,
    batches: Iterable[tuple[tuple[Tensor, ...], Tensor]],
    loss: Loss,
    *,
    lr: float,
    optimiser: Optimiser = "adam",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    pull: float = 0.0,
    fixed: Params | None = None,
    gradients: Gradients | None = None,
) -> tuple[Params, Tensor]:
    """Return fitted models, and the mean of their samples' losses on the way, float64 `[K]`.

    Args:
        params: Where they begin, name -> `[K, ...]`; not written to.
        batches: One per step: inputs `[K, B, ...]` each, and the weight of each sample, `[K, B]`,
            0 where it is padding, which must be finite. A model's loss is the weighted mean of
            its samples'.
        loss: Of one model; given its parameters, then its `fixed` ones in the same mapping.
        lr: Learning rate.
        optimiser: `adam` or `sgd`.
        momentum: μ of SGD.
        weight_decay: λ of SGD.
        pull: c of a term (c/2) ‖w − w_0‖² in each model's loss, w_0 where it began. The losses that
            are returned are without it.
        fixed: Further tensors of the models, `[K, ...]`, that stay as they are.
        gradients: A quicker way to those of `loss`, which is then not called; without `fixed`.
    """
    fitted = {name: tensor.detach().clone() for name, tensor in params.items()}
    rest = {} if fixed is None else fixed
    count, like = next((len(t), t) for t in fitted.values())
    moments = Adam(fitted) if optimiser == "adam" else None
    velocity: Params = {}
    total_K = torch.zeros(count, dtype=torch.float64, device=like.device)
    seen_K = torch.zeros_like(total_K)

    def mean(own: Params, held: Params, weight_B: Tensor, *inputs: Tensor) -> Tensor:
        losses_B = loss({**held, **own}, *inputs)
        return (weight_B * losses_B).sum() / weight_B.sum().clamp(min=torch.finfo(like.dtype).tiny)

    gradient = torch.vmap(torch.func.grad_and_value(mean))
    with torch.no_grad():
        for inputs, weight_KB in batches:
            weight_KB = weight_KB.to(like.dtype)
            if gradients is None:
                grads, values_K = gradient(fitted, rest, weight_KB, *inputs)
            else:
                grads, values_K = gradients(fitted, weight_KB, *inputs)
            weight_K = weight_KB.sum(1)
            if pull:
                grads = {n: g + pull * (fitted[n] - params[n]) for n, g in grads.items()}
            if moments is not None:
                moments.step_(fitted, grads, lr, weight_K > 0)
            else:
                for name, grad in grads.items():
                    if weight_decay:
                        grad = grad + weight_decay * fitted[name]
                    moves = (weight_K > 0).view(-1, *[1] * (grad.dim() - 1))
                    if momentum:
                        before = velocity.get(name, torch.zeros_like(grad))
                        grad = torch.where(moves, momentum * before + grad, before)
                        velocity[name] = grad
                    fitted[name].sub_(torch.where(moves, grad, 0), alpha=lr)
            total_K += weight_K * values_K
            seen_K += weight_K
    return fitted, total_K / seen_K.clamp(min=1)
