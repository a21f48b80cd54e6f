"""How a client half's functions are differentiated: alone, or under `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsim.records import Params

Grad = Callable[[Callable[[Params], Tensor], Params], tuple[Params, Tensor]]
"""`grad(function, params) -> (gradients, value)` of a scalar function of `params`."""


def gradient(function: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    """Return the gradient and the value of a scalar function of `params`, by plain autograd.

    Inside of another call, the result can be differentiated again.

    Example:
        >>> grads, value = gradient(lambda p: (p["w"] ** 2).sum(), {"w": torch.tensor([1.0, 2.0])})
        >>> grads["w"].tolist(), value.item()
        ([2.0, 4.0], 5.0)
    """
    nested = any(tensor.requires_grad for tensor in params.values())
    # Fused attention can be differentiated once only.
    attention = sdpa_kernel(SDPBackend.MATH) if nested else nullcontext()
    with torch.enable_grad(), attention:
        leaves = params if nested else {n: t.detach().requires_grad_() for n, t in params.items()}
        value = function(leaves)
        grads = torch.autograd.grad(
            value, list(leaves.values()), create_graph=nested, materialize_grads=True
        )
    return dict(zip(leaves, grads, strict=True)), value if nested else value.detach()


def functional_gradient(
    function: Callable[[Params], Tensor], params: Params
) -> tuple[Params, Tensor]:
    """Return the same by `torch.func`, which works under `vmap`."""
    # Fused attention has no batched form, nor a second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        grads, value = torch.func.grad_and_value(function)(params)
    return grads, value
