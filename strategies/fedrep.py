"""FedRep (Collins et al., ICML 2021, arXiv:2102.07078, Algorithm 1): heads first, then the body.

    client k:  (x, h_k); first SGD steps on h_k alone, x fixed, then on x alone, h_k fixed -> y_k
    server:    x ← x + η · mean_k (y_k − x)                   over the clients that replied

h_k, the head, is the last `head_layers` layers of the model; x, the representation, is all the
rest. The first `head_share` of a client's local steps, rounded, train the head: of client.epochs=5,
0.8 is four epochs for the head and one for the body. The last step is always the body's. η = 1 is
the paper. Clients are scored with their own heads; the global model keeps the initial head, and its
central score says nothing.

Differs from the paper: a client's head begins as the initial model's, the same for all. The server
stores every client's head by client index, sends it with the message and takes it back with the
reply, so that a run survives its processes; it never averages or reads it. A deployment in which
personal parameters must not leave the device is not served by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fedsim.client import ClientContext, ClientHalf
from fedsim.models.structure import head
from fedsim.parts import Range
from fedsim.personal import PersonalPart, Weighting
from fedsim.records import Params, PayloadOf, Replies
from fedsim.strategy import FedsimStrategy, Round, State


@dataclass(frozen=True)
class HeadThenBody(ClientHalf):
    """Local work on the client's own head, which is what `client-arrays` hold, then on the rest."""

    head_share: float

    def begin(self, params: Params, context: ClientContext) -> Params:
        return {**params, **context.arrays}

    def frozen(self, context: ClientContext) -> Mapping[str, bool | Tensor]:
        step, steps = context.step, context.steps
        # Half a step of tolerance: the share of a whole number of epochs is exact in no precision.
        heads = (step + 0.5 < self.head_share * steps) & (step + 1 < steps)
        return {name: heads != (name in context.arrays) for name in context.trainable}


@dataclass(kw_only=True)
class FedRep(FedsimStrategy):
    """Averages the body; heads are personal, and trained before it.

    Attributes:
        head_layers: How many of the last layers (with parameters, as the model defines them) are
            the head.
        head_share: Share of the local steps that train the head.
        weighting: `uniform` (the paper) or `examples`.
        server_lr: η.
    """

    head_layers: Annotated[int, Range(ge=0)] = 1
    head_share: Annotated[float, Range(ge=0, lt=1)] = 0.8
    weighting: Weighting = "uniform"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._heads = PersonalPart()

    @property
    def client_half(self) -> ClientHalf:
        return HeadThenBody(self.head_share)

    def client_payload(self, context: Round) -> Params | PayloadOf:
        return self._heads.payload(context, head(self.model_layers, self.head_layers))

    def evaluation_payload(self, context: Round) -> Params | PayloadOf:
        return self.client_payload(context)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        personal = head(self.model_layers, self.head_layers)
        return self._heads.average(
            context, replies, personal, weighting=self.weighting, server_lr=self.server_lr
        )

    def state_dict(self) -> State:
        return self._heads.table.state_dict("head/")

    def load_state_dict(self, state: State) -> None:
        self._heads.table.load_state_dict(state, "head/")
