"""pFedMe (Dinh, Tran & Nguyen, NeurIPS 2020, arXiv:2006.08848, Algorithm 1): Moreau envelopes.

    client k:  y_k ← x; in each local step, on one batch:
               θ_k ≈ argmin_θ F_k(θ) + (λ/2) ‖θ − y_k‖²       by K gradient steps from y_k
               y_k ← y_k − γ λ (y_k − θ_k)                    γ the client's lr
    server:    x ← (1 − β) x + β · mean_k y_k                 over the clients that replied

F_k is the loss of the step's batch. `server_lr` is β. Clients are scored with the θ_k of their last
local step (before the first: with the global model), the server with x. The reported training loss
is that of y_k.

Differs from the paper: nothing in the maths. The authors' code begins the K steps at the θ_k of the
step before, within a round; ours at y_k. The server stores every θ_k by client index, sends it with
the message and takes it back with the reply, so that a run survives its processes; it never
averages or reads it. A deployment in which personal parameters must not leave the device is not
served by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from torch import Tensor

from fedsim.client import Batch, ClientContext, ClientHalf
from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.personal import Weighting, average
from fedsim.records import Params, PayloadOf, Replies
from fedsim.strategy import FedsimStrategy, Round, State

OWN = "own/"
"""What the names of θ_k's tensors start with."""


@dataclass(frozen=True)
class Envelope(ClientHalf):
    """The gradient of the Moreau envelope of a batch's loss, from an approximate minimiser."""

    lam: float
    inner_steps: int
    inner_lr: float

    def gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor, Params]:
        theta, losses = dict(params), []
        for _ in range(self.inner_steps):
            grads, loss = self.loss_gradient(theta, batch, context)
            losses.append(loss)
            for name, grad in grads.items():
                pull = self.lam * (theta[name] - params[name])
                theta[name] = theta[name] - self.inner_lr * (grad + pull)
        moved = {name: self.lam * (params[name] - theta[name]) for name in context.trainable}
        return moved, losses[0], {OWN + name: tensor for name, tensor in theta.items()}

    def evaluated(self, params: Params, batch: Batch, context: ClientContext) -> Params:
        return {name.removeprefix(OWN): tensor for name, tensor in context.arrays.items()}

    def upload(self, params: Params, context: ClientContext) -> Params:
        return dict(context.arrays)


@dataclass(kw_only=True)
class PFedMe(FedsimStrategy):
    """Averages models that personal ones are held near to.

    Attributes:
        lam: λ, how strongly; client.lr · λ < 1, or steps of y_k overshoot.
        inner_steps: K.
        inner_lr: Of the K steps; below 2 / (λ + the loss's curvature).
        weighting: `uniform` (the paper) or `examples`.
        server_lr: β.
    """

    lam: Annotated[float, Range(gt=0)] = 5.0
    inner_steps: Annotated[int, Range(ge=1)] = 5
    inner_lr: Annotated[float, Range(gt=0)] = 0.1
    weighting: Weighting = "uniform"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._models = ClientTable()

    @property
    def client_half(self) -> ClientHalf:
        return Envelope(self.lam, self.inner_steps, self.inner_lr)

    def client_payload(self, context: Round) -> PayloadOf:
        current = self.upload_like(context)
        self._models.fit(current, context.num_clients)
        return partial(self._models.rows, default=current)

    def evaluation_payload(self, context: Round) -> PayloadOf:
        return self.client_payload(context)

    def upload_like(self, context: Round) -> Mapping[str, Tensor]:
        return {OWN + name: tensor for name, tensor in context.params.items()}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        return average(
            context.params,
            replies,
            weighting=self.weighting,
            server_lr=self.server_lr,
            keep=lambda chunk: self._models.put(chunk.client_index, chunk.client_arrays),
        )

    def state_dict(self) -> State:
        return self._models.state_dict("models/")

    def load_state_dict(self, state: State) -> None:
        self._models.load_state_dict(state, "models/")
