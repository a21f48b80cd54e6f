"""Ditto (Li et al., ICML 2021, arXiv:2012.04221, Algorithm 1): a global and personal models.

    client k:  y_k ← x; local SGD steps on F_k(y_k); beside each, on the same batch,
               v_k ← v_k − γ (∇F_k(v_k) + λ (v_k − x))        x as received, γ the client's lr
    server:    x ← x + η · mean_k (y_k − x)                   over the clients that replied

λ = 0 is local training, λ → ∞ the global model. v_k begins as the initial model. η = 1 is the
paper. Clients are scored with v_k, the server with x.

Shapes: `[K, ...]` one row per client of a chunk.

Differs from the paper: one step of v_k for each of y_k, on the same batches. Momentum and weight
decay of the `client` group move y_k alone. The server stores every v_k by client index, sends it
with the message and takes it back with the reply, so that a run survives its processes; it never
averages or reads it. A deployment in which personal parameters must not leave the device is not
served by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from fedsim.client import Batch, ClientContext, ClientHalf
from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.personal import Weighting, average
from fedsim.records import Params, PayloadOf, Replies
from fedsim.strategy import FedsimStrategy, Round, State

OWN = "own/"
"""What the names of v_k's tensors start with."""


@dataclass(frozen=True)
class Personal(ClientHalf):
    """Steps of the personal model, held near the global one, beside those of the engine."""

    lam: float

    def gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor, Params]:
        grads, loss = self.loss_gradient(params, batch, context)
        own = self._own(context)
        own_grads, _ = self.loss_gradient(own, batch, context)
        for name, grad in own_grads.items():
            pull = self.lam * (own[name] - context.start[name])
            own[name] = own[name] - context.lr * (grad + pull)
        return grads, loss, {OWN + name: tensor for name, tensor in own.items()}

    def evaluated(self, params: Params, batch: Batch, context: ClientContext) -> Params:
        return self._own(context)

    def upload(self, params: Params, context: ClientContext) -> Params:
        return dict(context.arrays)

    @staticmethod
    def _own(context: ClientContext) -> Params:
        return {name.removeprefix(OWN): tensor for name, tensor in context.arrays.items()}


@dataclass(kw_only=True)
class Ditto(FedsimStrategy):
    """FedAvg, and a personal model for each client.

    Attributes:
        lam: λ, how strongly personal models are held near the global one.
        weighting: `uniform` (the paper) or `examples`.
        server_lr: η.
    """

    lam: Annotated[float, Range(ge=0)] = 0.1
    weighting: Weighting = "uniform"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._initial: Params = {}
        self._models = ClientTable()

    @property
    def client_half(self) -> ClientHalf:
        return Personal(self.lam)

    def client_payload(self, context: Round) -> PayloadOf:
        if not self._initial:  # the first round, or the first one that has participants
            self._initial = {OWN + name: t.clone() for name, t in context.params.items()}
        device = next(iter(context.params.values())).device
        self._initial = {name: tensor.to(device) for name, tensor in self._initial.items()}
        self._models.fit(self._initial, context.num_clients)
        return partial(self._models.rows, default=self._initial)

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
        initial = {f"initial/{name}": tensor for name, tensor in self._initial.items()}
        return {**self._models.state_dict("models/"), **initial}

    def load_state_dict(self, state: State) -> None:
        self._models.load_state_dict(state, "models/")
        self._initial = {
            name.removeprefix("initial/"): torch.as_tensor(value)
            for name, value in state.items()
            if name.startswith("initial/")
        }
