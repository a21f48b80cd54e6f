"""FedNova (Wang et al., NeurIPS 2020, arXiv:2007.07481, equations 5 to 8).

    client i:  τ_i local steps from x to y_i, with momentum ρ and a proximal term μ where set:
               x − y_i = γ · Σ_k a_ik g_ik,   g_ik its k-th gradient
    server:    d_i = (x − y_i) / ‖a_i‖₁   (γ times the paper's);   τ_eff = Σ_i p_i ‖a_i‖₁
               x ← x − η · τ_eff · Σ_i p_i d_i                    over the clients that replied

so that clients that take more steps do not pull harder. With α = γ μ:

    plain     ‖a‖₁ = τ
    momentum  ‖a‖₁ = [τ − ρ (1 − ρ^τ) / (1 − ρ)] / (1 − ρ)
    proximal  ‖a‖₁ = [1 − (1 − α)^τ] / α

and with both, what gradients of 1 add up to. p_i is the client's share of the samples
(`weighting: examples`, the paper), or equal (`uniform`).

Shapes: `_K` per client of a chunk of replies.

Differs from the paper: p_i is normalised over the replies; buffers are averaged by p_i. (The
published code adds up momentum and proximal vectors; that is exact for one of them alone.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim.client.half import ClientContext, ClientHalf
from fedsim.client.proximal import Proximal
from fedsim.parts import Range
from fedsim.records import Chunk, Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round


@dataclass(frozen=True)
class Normalised(Proximal):
    """Proximal local steps, of which the server is told how they add up gradients."""

    def upload(self, params: Params, context: ClientContext) -> Params:
        told = {"steps": context.steps, "lr": context.lr, "momentum": context.momentum}
        return {name: context.scalar(value) for name, value in told.items()}


@dataclass(kw_only=True)
class FedNova(FedsimStrategy):
    """The mean of normalised updates.

    Attributes:
        mu: μ of the clients' proximal term; 0 for none. (Momentum is set in `client`.)
        weighting: `examples` or `uniform`.
        server_lr: η.
    """

    mu: Annotated[float, Range(ge=0)] = 0.0
    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    @property
    def client_half(self) -> ClientHalf:
        return Normalised(self.mu)

    def upload_like(self, context: Round) -> Params:
        zero = next(iter(self.trained(context.params).values())).new_zeros(())
        return {"steps": zero, "lr": zero, "momentum": zero}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        trained = self.trained(context.params)
        normalised = UpdateSum(trained)
        buffers = UpdateSum({n: x for n, x in context.params.items() if n not in trained})
        steps = 0.0  # Σ p_i ‖a_i‖₁, before p is normalised
        for chunk in replies.chunks():
            norm_K = self._norms(chunk)
            sane = np.isfinite(norm_K) & (norm_K > 0)  # they are the clients' claims
            chunk, norm_K = chunk.rows(sane), norm_K[sane]
            weights_K = chunk.weights(self.weighting)
            normalised.add(chunk.arrays, weights_K / norm_K)
            buffers.add(chunk.arrays, weights_K)
            steps += float(weights_K @ norm_K)
        if not buffers.weight:
            return context.params
        effective = steps / buffers.weight
        scale = self.server_lr * effective / buffers.weight
        return {**buffers.mean(1.0), **normalised.step(scale)}

    def _norms(self, chunk: Chunk) -> np.ndarray:
        """Return each client's ‖a_i‖₁, float64 `[K]`."""
        told = (chunk.client_arrays[name].tolist() for name in ("steps", "lr", "momentum"))
        return np.array(
            [
                accumulated(steps, momentum, lr * self.mu)
                for steps, lr, momentum in zip(*told, strict=True)
            ]
        )


def accumulated(steps: float, momentum: float, alpha: float) -> float:
    """Return (x − y)/γ after some steps whose gradients are all 1.

    e ← e + v with v ← ρ v + 1 − α e, where e = (x − y)/γ and α = γ μ.

    Example:
        >>> accumulated(3, momentum=0.5, alpha=0.0)  # 1 + 1.5 + 1.75
        4.25
        >>> accumulated(2, momentum=0.0, alpha=0.25)  # 1 + 0.75
        1.75
    """
    step = np.array([[1 - alpha, momentum, 1], [-alpha, momentum, 1], [0, 0, 1]])
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.matrix_power(step, max(int(steps), 0))[0, 2])
