"""FedPer (Arivazhagan et al. 2019, arXiv:1912.00818, Algorithms 1 and 2): a shared body, own heads.

    client k:  (x, h_k) -> local SGD steps on both -> (y_k, h_k)
    server:    x ← x + η · Σ_k w_k (y_k − x) / Σ_k w_k        over the clients that replied

h_k, the head, is the last `head_layers` layers of the model; x is all the rest. w_k is the client's
number of samples (`weighting: examples`, the paper), or 1. η = 1 is the paper. Clients are scored
with their own heads; the global model keeps the initial head, and its central score says nothing.

Differs from the paper: weights are normalised over the replies, as only some clients take part. A
client's head begins as the initial model's, the same for all. The server stores every client's head
by client index, sends it with the message and takes it back with the reply, so that a run survives
its processes; it never averages or reads it. A deployment in which personal parameters must not
leave the device is not served by this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fedsim.client import ClientContext, ClientHalf
from fedsim.models.structure import head
from fedsim.parts import Range
from fedsim.personal import PersonalPart, Weighting
from fedsim.records import Params, PayloadOf, Replies
from fedsim.strategy import FedsimStrategy, Round, State


class OwnHead(ClientHalf):
    """Local work that begins with the client's own head, which is what `client-arrays` hold."""

    def begin(self, params: Params, context: ClientContext) -> Params:
        return {**params, **context.arrays}


@dataclass(kw_only=True)
class FedPer(FedsimStrategy):
    """Averages the body; heads are personal, and trained together with it.

    Attributes:
        head_layers: How many of the last layers (with parameters, as the model defines them) are
            personal; 0 is FedAvg, all of them is local training.
        weighting: `examples` or `uniform`.
        server_lr: η.
    """

    head_layers: Annotated[int, Range(ge=0)] = 1
    weighting: Weighting = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._heads = PersonalPart()

    @property
    def client_half(self) -> ClientHalf:
        return OwnHead()

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
