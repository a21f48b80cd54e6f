"""Per-FedAvg (Fallah et al., NeurIPS 2020, arXiv:2002.07948, Algorithm 1): a model to start from.

    client k:  y_k ← x; in each local step, of three parts D, D', D'' of one batch:
               w̃ = y_k − α ∇F_k(y_k; D);   d = ∇F_k(w̃; D')
               y_k ← y_k − γ · (I − α ∇²F_k(y_k; D'')) d      γ the client's lr, the paper's β
    server:    x ← x + η · mean_k (y_k − x)                   over the clients that replied

`variant: maml` multiplies with the Hessian exactly; `hf` takes ∇²F d from the difference of two
gradients, (∇F(y + δd) − ∇F(y − δd)) / 2δ; `fo` leaves the Hessian out, and D'' with it. η = 1 is
the paper. Clients are scored with x − α ∇F_k(x) on one batch of their own training samples, the
server with x. The reported training loss is that of w̃ on D'.

Differs from the paper: nothing in the maths. D, D', D'' are disjoint thirds (halves) of one batch
of the `client` group, every third (second) sample each; a batch too small for that, or
`split: false`, serves as all of them. No client has any state at the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.client import Batch, ClientContext, ClientHalf
from fedsim.parts import Range
from fedsim.personal import Weighting, average
from fedsim.records import Params, Replies
from fedsim.strategy import FedsimStrategy, Round

Variant = Literal["fo", "hf", "maml"]


@dataclass(frozen=True)
class Adapted(ClientHalf):
    """The gradient of the loss after one step of adaptation, with respect to the model before."""

    alpha: float
    variant: Variant
    delta: float
    split: bool

    def gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor, Params]:
        first, second, third = self._parts(batch)
        outer, loss = self.loss_gradient(self._adapt(params, first, context), second, context)
        if self.variant == "fo":
            return outer, loss, {}
        curved = self._curvature(params, outer, third, context)
        return {name: d - self.alpha * curved[name] for name, d in outer.items()}, loss, {}

    def evaluated(self, params: Params, batch: Batch, context: ClientContext) -> Params:
        return self._adapt(params, batch, context)

    def _adapt(self, params: Params, batch: Batch, context: ClientContext) -> Params:
        grads, _ = self.loss_gradient(params, batch, context)
        return {**params, **{name: params[name] - self.alpha * g for name, g in grads.items()}}

    def _curvature(
        self, params: Params, along: Params, batch: Batch, context: ClientContext
    ) -> Params:
        """Return ∇²F(params) · along."""
        if self.variant == "hf":
            plus, minus = (
                self.loss_gradient(
                    {**params, **{n: params[n] + sign * d for n, d in along.items()}},
                    batch,
                    context,
                )[0]
                for sign in (self.delta, -self.delta)
            )
            return {name: (plus[name] - minus[name]) / (2 * self.delta) for name in along}

        def slope(trained: Params) -> Tensor:
            grads, _ = self.loss_gradient({**params, **trained}, batch, context)
            return torch.stack([(grads[name] * d).sum() for name, d in along.items()]).sum()

        return context.grad(slope, {name: params[name] for name in along})[0]

    def _parts(self, batch: Batch) -> list[Batch]:
        """Return D, D', D''."""
        count = 2 if self.variant == "fo" else 3
        if not self.split or len(batch.y) < count:
            return [batch] * 3
        parts = [Batch(x=batch.x[i::count], y=batch.y[i::count]) for i in range(count)]
        return [parts[0], parts[1], parts[-1]]


@dataclass(kw_only=True)
class PerFedAvg(FedsimStrategy):
    """Averages models that are good after one step of each client's own.

    Attributes:
        alpha: α, the adaptation's step size; 0 is FedAvg (on one part of each batch).
        variant: `fo`, `hf` or `maml`.
        delta: δ of `hf`; too small a one loses digits, in float32 all of them below 0.001.
        split: Whether the three gradients of a step are of three parts of its batch (the paper), or
            all of the whole batch.
        weighting: `uniform` (the paper) or `examples`.
        server_lr: η.
    """

    alpha: Annotated[float, Range(ge=0)] = 0.1
    variant: Variant = "maml"
    delta: Annotated[float, Range(gt=0)] = 0.01
    split: bool = True
    weighting: Weighting = "uniform"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    @property
    def client_half(self) -> ClientHalf:
        return Adapted(self.alpha, self.variant, self.delta, self.split)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        return average(context.params, replies, weighting=self.weighting, server_lr=self.server_lr)
