"""Local training alone: each client's classifier sees nothing of anybody else.

    client k:  v_k ← steps on the cross-entropy of its labelled samples, from its last v_k

v_k begins as the initial model, the same for all. The server stores each v_k by client index, sends
it with the message and takes it back with the reply, so that a run survives its processes and uses
the rounds, batches and learning rates of those it is compared with. Clients without labels keep
what they began with. The run's model is the mean of the v_k that came last: nobody is sent it.

With `data.labelled=1` it is what users could do alone if all of their windows had labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client.half import ClientHalf
from fedsim.client_table import ClientTable
from fedsim.personal import average
from fedsim.records import Params, PayloadOf, Replies
from fedsim.stacked_fit import Optimiser
from fedsim.strategy import FedsimStrategy, Round, State
from strategies.classified import OwnClassifiers, classifier_of


@dataclass(kw_only=True)
class LocalOnly(FedsimStrategy):
    """Clients train alone.

    Attributes:
        optimiser: Of their steps; its moments begin anew in every round.
    """

    optimiser: Optimiser = "sgd"

    sends_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._own = ClientTable()
        self._initial: Params = {}

    @property
    def client_half(self) -> ClientHalf:
        return OwnClassifiers(self.optimiser)

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        return classifier_of(self, self._round.params)

    def client_payload(self, context: Round) -> PayloadOf:
        like = classifier_of(self, context.params)
        if not self._initial:  # the first round, or the first one that has participants
            self._initial = {name: tensor.clone() for name, tensor in like.items()}
        self._initial = {name: t.to(like[name].device) for name, t in self._initial.items()}
        self._own.fit(self._initial, context.num_clients)
        return partial(self._own.rows, default=self._initial)

    def evaluation_payload(self, context: Round) -> PayloadOf:
        return self.client_payload(context)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        mean = average(
            classifier_of(self, context.params),
            replies,
            weighting="uniform",
            server_lr=1.0,
            keep=lambda chunk: self._own.put(chunk.client_index, chunk.arrays),
        )
        return {**context.params, **mean}

    def state_dict(self) -> State:
        initial = {f"initial/{name}": tensor for name, tensor in self._initial.items()}
        return {**self._own.state_dict("own/"), **initial}

    def load_state_dict(self, state: State) -> None:
        self._own.load_state_dict(state, "own/")
        self._initial = {
            name.removeprefix("initial/"): torch.as_tensor(value)
            for name, value in state.items()
            if name.startswith("initial/")
        }
