"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378, Algorithm 1).

    client i:  y ← x;  K steps of  y ← y − γ (g(y) − c_i + c)
               option I:   c_i⁺ = ∇F_i(x), over all of the client's samples
               option II:  c_i⁺ = c_i − c + (x − y) / (K γ)
    server:    x ← x + η · (1/S) Σ_{i replied} (y_i − x)
               c ← c + (1/N) Σ_{i replied} (c_i⁺ − c_i)

All start at 0, so that c is the mean of all c_i. The server keeps every c_i by client index and
sends each client its c − c_i. With option II the client tells K γ, from which the server computes
c_i⁺; with option I it sends c_i⁺.

Shapes: `_K` per client of a chunk of replies.

Differs from the paper: c_i is kept by the server and not by the client, so that a client that was
asked but whose reply was not admitted keeps the old one. Option II takes (x − y) / (K γ) for the
mean gradient, which it is for plain SGD: with local momentum or weight decay, prefer option I.
Buffers are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import ClientContext, ClientHalf, Shift
from fedsim.client_table import ClientTable
from fedsim.parts import Range
from fedsim.records import Chunk, Params, PayloadOf, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round, State

CONTROLS, NEW = "controls/", "control/"


@dataclass(frozen=True)
class Controlled(ClientHalf):
    """Local steps with control variates; `context.arrays` is c − c_i."""

    full_gradient: bool

    def shift(self, context: ClientContext) -> Shift:
        return Shift(offset=context.arrays)

    def upload(self, params: Params, context: ClientContext) -> Params:
        if self.full_gradient:
            return {NEW + name: gradient for name, gradient in context.gradient.items()}
        return {"k-gamma": context.scalar(context.steps * context.lr)}


@dataclass(kw_only=True)
class Scaffold(FedsimStrategy):
    """Control variates against client drift.

    Attributes:
        option: How a client renews its control variate: `I` costs a pass over its samples.
        server_lr: η.
    """

    option: Literal["I", "II"] = "II"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._controls = ClientTable(total=True)

    @property
    def client_half(self) -> ClientHalf:
        return Controlled(full_gradient=self.option == "I")

    def upload_like(self, context: Round) -> Params:
        trained = self.trained(context.params)
        if self.option == "I":
            return {NEW + name: x for name, x in trained.items()}
        return {"k-gamma": next(iter(trained.values())).new_zeros(())}

    def client_payload(self, context: Round) -> PayloadOf:
        c = self._mean(context)

        def difference(clients: np.ndarray) -> Params:
            own = self._controls.rows(clients)
            return {name: torch.sub(c[name], rows, out=rows) for name, rows in own.items()}

        return difference

    def aggregate(self, context: Round, replies: Replies) -> Params:
        c, total = self._mean(context), UpdateSum(context.params)
        for part in (part for chunk in replies.chunks() for part in chunk.parts()):
            update_K = total.add_updates(part.arrays, np.ones(len(part)))
            self._controls.put(part.client_index, self._renewed(part, update_K, c))
        return total.mean(self.server_lr)

    def _mean(self, context: Round) -> Params:
        """Return c, the mean of all clients' control variates."""
        trained = self.trained(context.params)
        self._controls.fit(trained, context.num_clients)
        return {
            name: (total / context.num_clients).to(trained[name].dtype)
            for name, total in self._controls.total.items()
        }

    def _renewed(self, chunk: Chunk, update_K: Params, c: Params) -> Params:
        """Return c_i⁺ of some clients; not finite, and so not kept, where K γ is 0."""
        if self.option == "I":
            return {name: chunk.client_arrays[NEW + name] for name in c}
        travel_K = chunk.client_arrays["k-gamma"]
        new = self._controls.rows(chunk.client_index)
        for name, rows in new.items():
            rows.sub_(c[name]).addcdiv_(update_K[name], _column(travel_K, rows), value=-1)
        return new

    def state_dict(self) -> State:
        return self._controls.state_dict(CONTROLS)

    def load_state_dict(self, state: State) -> None:
        self._controls.load_state_dict(state, CONTROLS)


def _column(values_K: Tensor, like: Tensor) -> Tensor:
    return values_K.view(-1, *[1] * (like.dim() - 1))
