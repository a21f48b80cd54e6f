"""What strategies share whose clients have models, or parts of the model, of their own.

The server stores what is a client's own by client index, sends it with the message, and takes it
back from the reply: so it survives processes, engines and resumes alike. It is never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Literal

import numpy as np

from fedsim.client_table import ClientTable
from fedsim.records import Chunk, Params, PayloadOf, Replies, UpdateSum
from fedsim.strategy import Round

Weighting = Literal["examples", "uniform"]
"""How replies are averaged: by their number of samples, or alike."""


def average(
    params: Params,
    replies: Replies,
    *,
    weighting: Weighting,
    server_lr: float,
    keep: Callable[[Chunk], None] = lambda chunk: None,
) -> Params:
    """Return x + η · Σ_k w_k (y_k − x) / Σ_k w_k over the replies; x itself if there are none.

    Args:
        params: x: the tensors to average; replies may hold others.
        replies: The y_k.
        weighting: What the w_k are.
        server_lr: η.
        keep: Called with each chunk of replies, for what else is to be done with them.
    """
    total = UpdateSum(params)
    for chunk in replies.chunks():
        uniform = weighting == "uniform"
        total.add(chunk.arrays, np.ones(len(chunk)) if uniform else chunk.num_examples)
        keep(chunk)
    return total.step(server_lr / total.weight) if total.count else dict(params)


class PersonalPart:
    """The tensors of the model that each client keeps for itself.

    A client's part begins as that of the initial model, which is what the global one keeps.
    """

    def __init__(self) -> None:
        self.table = ClientTable()

    def payload(self, context: Round, personal: Collection[str]) -> PayloadOf | Params:
        """Return what gives clients their parts, name -> `[K, ...]`."""
        initial = self._fit(context, personal)
        return partial(self.table.rows, default=initial) if initial else {}

    def average(
        self,
        context: Round,
        replies: Replies,
        personal: Collection[str],
        *,
        weighting: Weighting,
        server_lr: float,
    ) -> Params:
        """Store the clients' parts; return the next global model, of which the rest has moved."""
        own = self._fit(context, personal)

        def keep(chunk: Chunk) -> None:
            if own:
                self.table.put(chunk.client_index, {name: chunk.arrays[name] for name in own})

        shared = {name: t for name, t in context.params.items() if name not in personal}
        moved = average(shared, replies, weighting=weighting, server_lr=server_lr, keep=keep)
        return {**context.params, **moved}

    def _fit(self, context: Round, personal: Collection[str]) -> Params:
        initial = {name: t for name, t in context.params.items() if name in personal}
        if initial:
            self.table.fit(initial, context.num_clients)
        return initial
