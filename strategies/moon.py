"""MOON (Li, He, Song, CVPR 2021, arXiv:2103.16257, Algorithm 1).

    client i:  y ← x; local SGD steps on
               CE(y) − μ log [ e^{s(z, z_glob)/T} / (e^{s(z, z_glob)/T} + e^{s(z, z_prev)/T}) ]
    server:    x ← x + η · Σ_i w_i (y_i − x) / Σ_i w_i

z, z_glob and z_prev are the representations of the batch under the local model, under the global
model x and under the client's own model of the last round that it took part in; s is the cosine.
A representation is what the model's last linear layer is given. The last two are computed as for
evaluation and get no gradient. The server keeps every client's last model by client index.

Before a client's first reply z_prev = z_glob, whose term has no gradient. μ = 0 is FedAvg.

Differs from the paper: the model is used as it is; the paper puts a projection head of two layers
in front of the last one (write it into the model). The previous model is kept by the server and
not by the client: one whose reply was not admitted keeps the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from fedsim.client.half import Batch, ClientContext, ClientHalf
from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.records import Params, PayloadOf, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round, State

MODELS = "models/"


@dataclass(frozen=True)
class Contrastive(ClientHalf):
    """The model-contrastive loss; `context.arrays` is the client's previous model."""

    mu: float
    temperature: float

    def loss(self, params: Params, batch: Batch, context: ClientContext) -> Tensor:
        outputs, z = context.features(params, batch.x)
        _, z_global = context.features(dict(context.start), batch.x, train=False)
        _, z_previous = context.features(dict(context.arrays), batch.x, train=False)
        apart = F.cosine_similarity(z, z_previous, dim=-1) - F.cosine_similarity(
            z, z_global, dim=-1
        )
        contrast = F.softplus(
            apart / self.temperature
        ).mean()  # −log e^a/(e^a + e^b), b − a = apart
        return self.criterion(outputs, batch, context) + self.mu * contrast


@dataclass(kw_only=True)
class Moon(FedsimStrategy):
    """FedAvg whose clients learn representations like the global model's, unlike their last.

    Attributes:
        mu: μ; the paper's grid is 0.1, 1, 5, 10.
        temperature: T.
        weighting: `examples` or `uniform`.
        server_lr: η.
    """

    mu: Annotated[float, Range(ge=0)] = 1.0
    temperature: Annotated[float, Range(gt=0)] = 0.5
    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._models = ClientTable()

    @property
    def client_half(self) -> ClientHalf:
        return Contrastive(self.mu, self.temperature)

    def client_payload(self, context: Round) -> PayloadOf:
        self._models.fit(context.params, context.num_clients)
        return lambda clients: self._models.rows(clients, default=context.params)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.weights(self.weighting))
            self._models.put(chunk.client_index, chunk.arrays)
        return total.mean(self.server_lr)

    def state_dict(self) -> State:
        return self._models.state_dict(MODELS)

    def load_state_dict(self, state: State) -> None:
        self._models.load_state_dict(state, MODELS)
