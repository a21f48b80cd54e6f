"""FedBN (Li et al., ICLR 2021, arXiv:2102.07623, Algorithm 1): own normalisation layers.

    client k:  (x, b_k) -> local SGD steps on both -> (y_k, b_k)
    server:    x ← x + η · mean_k (y_k − x)                   over the clients that replied

b_k are the parameters and running statistics of the model's normalisation layers, told by their
type; x is all the rest. η = 1 is the paper. Clients are scored with their own layers; the global
model keeps the initial ones, and its central score says nothing.

Differs from the paper: `layers: all` extends it from batch normalisation (`layers: batch`) to
group, layer and instance normalisation, since models that are trained federated often have those.
Clients that have not taken part yet have the initial layers. Batch normalisation fails on a batch
of one sample, as the last of an epoch may be; client.steps in place of client.epochs leaves short
batches out. The server stores every client's
layers by client index, sends them with the message and takes them back with the reply, so that a
run survives its processes; it never averages or reads them. A deployment in which personal
parameters must not leave the device is not served by this.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fedsim.client import ClientContext, ClientHalf
from fedsim.parts import Range
from fedsim.personal import PersonalPart, Weighting
from fedsim.records import Params, PayloadOf, Replies
from fedsim.strategy import FedsimStrategy, Round, State

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (_BatchNorm,),
    "all": (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
}


class OwnNormalisation(ClientHalf):
    """Local work that begins with the client's own layers, which is what `client-arrays` hold."""

    def begin(self, params: Params, context: ClientContext) -> Params:
        return {**params, **context.arrays}


@dataclass(kw_only=True)
class FedBN(FedsimStrategy):
    """Averages everything but the normalisation layers, which are personal.

    Attributes:
        layers: Which layers: of `batch` normalisation (the paper), or `all` normalisation.
        weighting: `uniform` (the paper) or `examples`.
        server_lr: η.
    """

    layers: Literal["batch", "all"] = "all"
    weighting: Weighting = "uniform"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._norms = PersonalPart()
        self._warned = False

    @property
    def client_half(self) -> ClientHalf:
        return OwnNormalisation()

    def personal(self) -> set[str]:
        """Return the names of the tensors that stay with the clients."""
        kinds = KINDS[self.layers]
        kept = [layer for layer in self.model_layers if issubclass(layer.kind, kinds)]
        return {name for layer in kept for name in layer.names}

    def client_payload(self, context: Round) -> Params | PayloadOf:
        personal = self.personal()
        if not personal and not self._warned:
            log.warning(
                "FedBN: the model has no normalisation layer of kind '%s', so this run is FedAvg",
                self.layers,
            )
            self._warned = True
        return self._norms.payload(context, personal)

    def evaluation_payload(self, context: Round) -> Params | PayloadOf:
        return self._norms.payload(context, self.personal())

    def aggregate(self, context: Round, replies: Replies) -> Params:
        return self._norms.average(
            context, replies, self.personal(), weighting=self.weighting, server_lr=self.server_lr
        )

    def state_dict(self) -> State:
        return self._norms.table.state_dict("norm/")

    def load_state_dict(self, state: State) -> None:
        self._norms.table.load_state_dict(state, "norm/")
