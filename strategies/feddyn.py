"""FedDyn (Acar et al., ICLR 2021, arXiv:2111.04263, Algorithm 1).

    client i:  θ_i ≈ argmin F_i(θ) − ⟨λ_i, θ⟩ + (α/2) ‖θ − x‖²        by local SGD steps from x
               λ_i ← λ_i − α (θ_i − x)
    server:    h ← h − (α/N) Σ_{i replied} (θ_i − x)
               x ← mean_{i replied} θ_i − h/α

All start at 0, so that h is the mean of all λ_i. λ_i tends to ∇F_i at a common point, where the
λ_i sum to zero: stationary points of Σ F_i are fixed points whatever the number of local steps.
The server keeps every λ_i by client index.

Differs from the paper: λ_i is kept by the server and not by the client, so that a client that was
asked but whose reply was not admitted keeps the old one. A round without replies leaves the model.
Buffers are averaged. (The published code also weighs α by sample counts, and decays weights.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.client.half import ClientContext, ClientHalf, Shift
from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.records import Params, PayloadOf, Replies, UpdateSum, moved
from fedsim.strategy import FedsimStrategy, Round, State

DUALS = "duals/"


@dataclass(frozen=True)
class Dynamic(ClientHalf):
    """Local steps on the dynamically regularised loss, whose linear and proximal terms are one.

    −λ_i + α (θ − x) = α (θ − (x + λ_i/α)); `context.arrays` is x + λ_i/α.
    """

    alpha: float

    def shift(self, context: ClientContext) -> Shift:
        return Shift(pull=self.alpha, anchor=context.arrays)


@dataclass(kw_only=True)
class FedDyn(FedsimStrategy):
    """Dynamic regularisation, which makes the clients' optima agree.

    Attributes:
        alpha: α; the paper's grid is 0.001, 0.01, 0.1.
    """

    alpha: Annotated[float, Range(gt=0)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._duals = ClientTable(total=True)

    @property
    def client_half(self) -> ClientHalf:
        return Dynamic(self.alpha)

    def client_payload(self, context: Round) -> PayloadOf:
        trained = self.trained(context.params)
        self._duals.fit(trained, context.num_clients)

        def anchor(clients: np.ndarray) -> Params:
            duals = self._duals.rows(clients)
            return {name: rows.div_(self.alpha).add_(trained[name]) for name, rows in duals.items()}

        return anchor

    def aggregate(self, context: Round, replies: Replies) -> Params:
        trained, total = self.trained(context.params), UpdateSum(context.params)
        for part in (part for chunk in replies.chunks() for part in chunk.parts()):
            update_K = total.add_updates(part.arrays, np.ones(len(part)))
            dual = self._duals.rows(part.client_index)
            for name, rows in dual.items():
                rows.sub_(update_K[name], alpha=self.alpha)
            self._duals.put(part.client_index, dual)
        if not total.count:
            return context.params
        update = {
            name: total.sums[name] / total.count - dual / (self.alpha * context.num_clients)
            for name, dual in self._duals.total.items()
        }
        return {**total.mean(1.0), **moved(trained, update, 1.0)}

    def state_dict(self) -> State:
        return self._duals.state_dict(DUALS)

    def load_state_dict(self, state: State) -> None:
        self._duals.load_state_dict(state, DUALS)
