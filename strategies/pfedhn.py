"""pFedHN (Shamsian, Navon, Fetaya, Chechik, ICML 2021, arXiv:2103.04628, Algorithm 1).

A hypernetwork h with one embedding α_j per client makes each client's classifier.

    server:    φ_j = h(α_j; θ)
    client j:  φ_j ─▶ φ̃_j by steps on the cross-entropy of its labelled samples; sends φ̃_j
    server:    (θ, α) ← Adam(clip(Jᵀ (φ_j − φ̃_j))),  J = ∂h / ∂(θ, α)

Clients are scored with φ_j as h makes it: nothing of a client is kept but α_j, and what it learns
goes to all through θ. Those without labels are never asked, and have what h makes of their α_j.
The run's model is h at the mean embedding.

Shapes: K clients of a round, `[K, ...]` one row for each.

Differs from the paper: several clients a round, whose steps are averaged (one client is the
paper's), and the hypernetwork's step is Adam's, where its code has SGD with momentum. Local steps
are those of the `client` group, by SGD as there (lr 5e-3, momentum 0.9, 50 steps), or by Adam.
pFedHN-PC, whose clients keep their heads, is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.client.half import ClientHalf
from fedsim.records import Params, PayloadOf
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import Round
from strategies.classified import OwnClassifiers, classifier_of
from strategies.hypernetworked import Hypernetworked


@dataclass(kw_only=True)
class PFedHN(Hypernetworked):
    """A hypernetwork makes clients' classifiers.

    Attributes:
        optimiser: Of the clients' steps.
    """

    optimiser: Optimiser = "sgd"

    @property
    def client_half(self) -> ClientHalf:
        return OwnClassifiers(self.optimiser)

    def made_of(self, params: Params) -> Params:
        return classifier_of(self, params)

    def evaluation_payload(self, context: Round) -> PayloadOf:
        self._fit(context)
        return self._hyper
