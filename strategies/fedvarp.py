"""FedVARP (Jhunjhunwala et al., UAI 2022, arXiv:2207.14130, Algorithm 2).

    client i:  y_i ← x; local SGD steps on y_i;  Δ_i = y_i − x
    server:    u = (1/S) Σ_{i replied} (Δ_i − h_i) + (1/N) Σ_{all j} h_j
               h_i ← Δ_i for those that replied;  x ← x + η u

h_i is client i's last update, zero before its first. A round without replies leaves the model.

Differs from the paper: nothing for what clients train; buffers are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum, moved
from fedsim.strategy import FedsimStrategy, Round, State

UPDATES = "updates/"


@dataclass(kw_only=True)
class FedVARP(FedsimStrategy):
    """The mean update, with every absent client's last one in its place.

    Attributes:
        server_lr: η.
    """

    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._updates = ClientTable(total=True)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        trained = self.trained(context.params)
        buffers = UpdateSum({n: x for n, x in context.params.items() if n not in trained})
        self._updates.fit(trained, context.num_clients)
        before = self._updates.total
        for part in (part for chunk in replies.chunks() for part in chunk.parts()):
            buffers.add(part.arrays, np.ones(len(part)))
            deltas = {name: part.arrays[name] - x for name, x in trained.items()}
            self._updates.put(part.client_index, deltas)
        if not buffers.count:
            return context.params
        update = {  # the total has changed by Σ (Δ_i − h_i)
            name: (after - before[name]) / buffers.count + before[name] / context.num_clients
            for name, after in self._updates.total.items()
        }
        return {**buffers.mean(1.0), **moved(trained, update, self.server_lr)}

    def state_dict(self) -> State:
        return self._updates.state_dict(UPDATES)

    def load_state_dict(self, state: State) -> None:
        self._updates.load_state_dict(state, UPDATES)
