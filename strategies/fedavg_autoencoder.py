"""FedAvg or FedProx of one autoencoder, the server's classifier on its code, fine-tuned by users.

    user k:  φ_k ← x; steps on ‖x − dec(enc(x))‖² of all its windows, + (μ/2) ‖φ − x‖²
    server:  x ← x + η · Σ_k w_k (φ_k − x) / Σ_k w_k          over the users that replied
    server:  b = cross-entropy on (enc_x(·), y) of all its labelled samples
    user k:  b_k ← Adam from b on (enc_x(·), y) of the windows that it knows the labels of

What SemiPFL is without its hypernetwork, its selection and its mixture: the model for all is
McMahan et al.'s (AISTATS 2017, arXiv:1602.05629), μ > 0 is FedProx (Li et al., MLSys 2020,
arXiv:1812.06127). Semi-supervised learning by an autoencoder whose encoder is averaged: Zhao et
al. (2020, arXiv:2011.00851), who do not fine-tune.

b is made where users are scored: x does not depend on it. A user without labels has b itself. The
run's model is x, with the head as it began: its central score says nothing.

Differs from the papers: local steps may be Adam's, on the same objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from torch import Tensor

from fedsim.client.half import ClientHalf
from fedsim.parts import Range
from fedsim.personal import Weighting, average
from fedsim.records import Params, PayloadOf, Replies
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import FedsimStrategy, Round
from strategies.coded import BASE, BaseFit, CodingUsers, autoencoder_of, coded, server_data_of


@dataclass(kw_only=True)
class FedAvgAutoencoder(FedsimStrategy):
    """One autoencoder for all, one classifier of the server's, fine-tuned by each user.

    Attributes:
        mu: μ; 0 is FedAvg.
        weighting: `examples` or `uniform`.
        server_lr: η.
        optimiser: Of the users' autoencoders.
        base_epochs, base_lr, base_batch: Of the server's classifier, by Adam.
        tune_epochs, tune_lr: Of its fine-tuning, by Adam on all labelled windows at once; 0 epochs:
            none.
    """

    mu: Annotated[float, Range(ge=0)] = 0.0
    weighting: Weighting = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0
    optimiser: Optimiser = "adam"
    base_epochs: Annotated[int, Range(ge=1)] = 40
    base_lr: Annotated[float, Range(gt=0)] = 3e-3
    base_batch: Annotated[int, Range(ge=1)] = 128
    tune_epochs: Annotated[int, Range(ge=0)] = 100
    tune_lr: Annotated[float, Range(gt=0)] = 0.01

    sends_model: ClassVar[bool] = False

    @property
    def client_half(self) -> ClientHalf:
        return CodingUsers(self.optimiser, "tune", self.tune_epochs, self.tune_lr, self.mu)

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        return autoencoder_of(self._round.params)

    def client_payload(self, context: Round) -> PayloadOf:
        server_data_of(self)
        return _to_all(autoencoder_of(context.params))

    def evaluation_payload(self, context: Round) -> PayloadOf:
        x, data = autoencoder_of(context.params), server_data_of(self)
        if self.federation is None or data is None:
            return _to_all(x)
        make = BaseFit(
            keep=1.0,
            tau=None,
            by_class=False,
            pooled=True,
            epochs=self.base_epochs,
            lr=self.base_lr,
            batch_size=self.base_batch,
            seed=self.federation.seed,
        )
        base = make(coded(self.federation.model), data, {n: t.unsqueeze(0) for n, t in x.items()})
        return _to_all({**x, **{BASE + name: rows[0] for name, rows in base.items()}})

    def aggregate(self, context: Round, replies: Replies) -> Params:
        x = autoencoder_of(context.params)
        moved = average(x, replies, weighting=self.weighting, server_lr=self.server_lr)
        return {**context.params, **moved}


def _to_all(params: Params) -> PayloadOf:
    """Return what sends everybody the same tensors, as `client-arrays`; no copy is made."""

    def rows(clients: np.ndarray) -> Params:
        return {name: t.expand(len(clients), *t.shape) for name, t in params.items()}

    return rows
