"""D-SGD (Lian et al., NeurIPS 2017, arXiv:1705.09056, Algorithm 1): gossip among neighbours.

    node i:      x_i^½ ← x_i; local SGD steps on x_i^½
    neighbours:  x_i ← Σ_j W_ij x_j^½                  W: Metropolis-Hastings weights of the graph

The run's model is the mean of the x_i; nodes are scored with their own. On data that differ from
node to node and with a constant step size, the x_i end at a distance from the optimum that grows
with the step size and with 1 / (1 − λ), λ the second eigenvalue of W; `gradient_tracking` does not.

Shapes: N nodes, `[N, ...]` one row for each.

Differs from the paper: any number of local steps (the paper: one), after which models are averaged
(the paper takes the gradient at x_i and the average side by side, x_i ← Σ_j W_ij x_j − γ g_i; this
order is its "adapt, then combine" form). Nodes that are absent from a round keep their models, and
W closes over the others. The simulation's server keeps the books: see `strategies.gossiping`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.client import ClientHalf
from fedsim.records import Params, Replies
from fedsim.strategy import Round
from strategies.gossiping import Gossiping, OwnModel, put_


@dataclass(kw_only=True)
class DSGD(Gossiping):
    """Local steps, then averages with neighbours."""

    @property
    def client_half(self) -> ClientHalf:
        return OwnModel()

    def aggregate(self, context: Round, replies: Replies) -> Params:
        self.fit(context)
        present_N = np.zeros(context.num_clients, bool)
        for chunk in replies.chunks():
            if len(chunk):
                present_N[chunk.client_index] = True
                for name, rows in self._models.items():
                    put_(rows, chunk.client_index, chunk.arrays[name])
        if not present_N.any():
            return context.params
        return self.mixed(context, np.flatnonzero(present_N))
