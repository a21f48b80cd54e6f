"""MIFA (Gu et al., NeurIPS 2021, arXiv:2106.04159, Algorithm 1).

    client i:  y_i ← x; local SGD steps on y_i;  Δ_i = y_i − x
    server:    h_i ← Δ_i for those that replied;  x ← x + η · (1/N) Σ_{all j} h_j

In every round, also where nobody replied: whoever is absent repeats its last update. h_i is zero
before the client's first (`init: zero`, as in FedAU's comparison), or the model waits until every
client has replied once (`wait_all`, the paper). The paper's h_i are sums of gradients and its step
is taken with this round's learning rate γ_t: `store: delta_over_lr` keeps Δ_i/γ_t, and
x ← x + η γ_t · (1/N) Σ h_j; for a constant γ the two are the same.

Differs from the paper: nothing with `wait_all` and `delta_over_lr`, for what clients train;
buffers are averaged. Clients without samples are not waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim.client_table import ClientTable
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum, moved
from fedsim.strategy import FedsimStrategy, Round, State

UPDATES = "updates/"


@dataclass(kw_only=True)
class MIFA(FedsimStrategy):
    """The mean of every client's last update, in every round.

    Attributes:
        init: `zero`, or `wait_all`.
        store: `delta`, or `delta_over_lr`.
        server_lr: η.
    """

    init: Literal["zero", "wait_all"] = "zero"
    store: Literal["delta", "delta_over_lr"] = "delta"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._updates = ClientTable(total=True)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        trained, lr = self.trained(context.params), self._lr(context.server_round)
        buffers = UpdateSum({n: x for n, x in context.params.items() if n not in trained})
        self._updates.fit(trained, context.num_clients)
        for part in (part for chunk in replies.chunks() for part in chunk.parts()):
            buffers.add(part.arrays, np.ones(len(part)))
            deltas = {name: (part.arrays[name] - x).div_(lr) for name, x in trained.items()}
            self._updates.put(part.client_index, deltas)
        if self.init == "wait_all" and self._waiting():
            return {**context.params, **buffers.mean(1.0)}
        step = self.server_lr * lr / context.num_clients
        return {**buffers.mean(1.0), **moved(trained, self._updates.total, step)}

    def _waiting(self) -> bool:
        """Whether somebody that may take part has not replied yet."""
        seen_N = self._updates.seen
        if self.federation is not None:
            seen_N |= self.federation.schedule.rates() == 0
        return not seen_N.all()

    def _lr(self, server_round: int) -> float:
        """Return what updates are divided by: the clients' learning rate, or 1."""
        if self.store == "delta":
            return 1.0
        if self.federation is None or self.federation.lr_at is None:
            raise ConfigError(
                "store: delta_over_lr divides by the clients' learning rate, which this server is "
                "not told; use store: delta"
            )
        return self.federation.lr_at(server_round)

    def state_dict(self) -> State:
        return self._updates.state_dict(UPDATES)

    def load_state_dict(self, state: State) -> None:
        self._updates.load_state_dict(state, UPDATES)
