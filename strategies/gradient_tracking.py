"""K-GT: gradient tracking with local steps (Liu et al. 2023, arXiv:2301.01313, Algorithm 1).

    node i:      x_i^½ ← x_i; K local steps  x_i^½ ← x_i^½ − γ (g_i(x_i^½) + c_i)
                 z_i ← (x_i − x_i^½) / (K γ)
    neighbours:  c_i ← c_i − z_i + Σ_j W_ij z_j           x_i ← Σ_j W_ij (x_j − η K γ z_j)

c_i tracks by how much the network's gradient differs from the node's own. With K = 1 it is gradient
tracking as in DIGing (Nedić et al. 2017, arXiv:1607.03218) in its "adapt, then combine" order: the
tracked gradient z_i is then y_i = Σ_j W_ij y_j + ∇f_i(x_i) − ∇f_i(x_i at the last round).

Σ_i c_i = 0 at all times, since it begins so and W is doubly stochastic. Hence, with K = 1, fixed
points are the exact optima of Σ_i f_i, with a constant step: c stays only if z = W z, so that all
z_i are one z; then x stays only if x − W x = −η K γ z, whose mean over nodes says z = 0, and so
all x_i are one x; and the mean of z_i = 0 over nodes is Σ_i ∇f_i(x) = 0. With K > 1 such an x is a
fixed point too: no local step moves from where ∇f_i(x) + c_i = 0. D-SGD has none.

Shapes: N nodes, `[N, ...]` one row for each; `[K, ...]` of a chunk.

Differs from the paper: c_i begins at 0, not at the difference of first gradients, which would cost
a round; any local optimiser settings of the `client` group apply to the local steps. A node without
samples has gradient 0: its z_i is c_i. Absent nodes keep x_i and c_i, and W closes over the others,
which leaves Σ_i c_i = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.client import ClientContext, ClientHalf, Shift
from fedsim.parts import Range
from fedsim.records import Chunk, Params, Replies
from fedsim.strategy import Round, State
from fedsim.topology.mixing import among
from strategies.gossiping import NODES, Gossiping, OwnModel, mix_

TRACKER, TRAVEL = "tracker/", "k-gamma"


class Tracking(OwnModel):
    """Local steps with the node's tracker; `client-arrays` hold it beside the node's model."""

    def shift(self, context: ClientContext) -> Shift:
        arrays = context.arrays
        return Shift(
            offset={n.removeprefix(TRACKER): t for n, t in arrays.items() if n.startswith(TRACKER)}
        )

    def upload(self, params: Params, context: ClientContext) -> Params:
        return {TRAVEL: context.scalar(context.steps * context.lr)}


@dataclass(kw_only=True)
class GradientTracking(Gossiping):
    """Local steps along tracked gradients, then averages with neighbours.

    Attributes:
        server_lr: η.
    """

    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._trackers: Params = {}

    @property
    def client_half(self) -> ClientHalf:
        return Tracking()

    def upload_like(self, context: Round) -> Mapping[str, Tensor]:
        return {TRAVEL: next(iter(self.trained(context.params).values())).new_zeros(())}

    def fit(self, context: Round) -> None:
        super().fit(context)
        if not self._trackers:
            names = self.trained(context.params)
            self._trackers = {name: torch.zeros_like(self._models[name]) for name in names}

    def sent(self) -> Params:
        return {**self._models, **{TRACKER + name: c for name, c in self._trackers.items()}}

    def copy(self, params: Params) -> Params:
        """See `Gossiping.copy`: x_i and z_i, which is twice a model."""
        return {**params, **{TRACKER + name: x for name, x in self.trained(params).items()}}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        self.fit(context)
        present_N = np.zeros(context.num_clients, bool)
        z = {name: torch.zeros_like(c) for name, c in self._trackers.items()}
        for chunk in replies.chunks():
            if len(chunk):
                present_N[chunk.client_index] = True
                self._take(chunk, z)
        if not present_N.any():
            return context.params
        who = np.flatnonzero(present_N)
        index, weights_SS = torch.from_numpy(who), among(self.weights, who)
        for name, c in self._trackers.items():
            before = z[name][index]
            mix_(z[name], weights_SS, who, torch.zeros_like(context.params[name], device="cpu"))
            c[index] += z[name][index] - before
        return self.mixed(context, who)

    def _take(self, chunk: Chunk, z: Params) -> None:
        """Put z_i of some nodes into `z`, and x_i − η K γ z_i in place of their models."""
        index = torch.from_numpy(chunk.client_index)
        travel_K = chunk.client_arrays[TRAVEL].cpu()
        idle_K = travel_K == 0
        for name, rows in self._models.items():
            half = chunk.arrays[name].to(rows.device, rows.dtype)
            if name not in z:  # buffers are averaged
                rows[index] = half
                continue
            moved = half - rows[index]
            shape = (-1, *[1] * (rows.dim() - 1))
            z[name][index] = torch.where(
                idle_K.view(shape),
                self._trackers[name][index],
                -moved / travel_K.masked_fill(idle_K, 1).view(shape),
            )
            rows[index] += self.server_lr * moved

    def state_dict(self) -> State:
        trackers = {TRACKER + name: c.clone() for name, c in self._trackers.items()}
        return {**super().state_dict(), **trackers}

    def load_state_dict(self, state: State) -> None:
        self.check_state(state, NODES, TRACKER)
        self._models, self._trackers = self.table(state, NODES), self.table(state, TRACKER)
