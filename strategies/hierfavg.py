"""HierFAVG (Liu et al., ICC 2020, arXiv:1905.06641, Algorithm 1): means at edge servers and cloud.

    client k of edge e:  y_k ← x_e; local SGD steps on y_k
    edge e, each round:  x_e ← x_e + Σ_k w_k (y_k − x_e) / Σ_k w_k      over its clients' replies
    cloud, each κ-th:    x ← x + Σ_e Ω_e (x_e − x) / Σ_e Ω_e;  x_e ← x  for all e

w_k is the client's number of samples (`weighting: examples`, the paper) or 1. Ω_e is the sum of
the w_k that edge e has averaged since the cloud last did; where all clients reply, its share is
that of the edge's samples, as in the paper. κ is `cloud_period`. The run's model is the cloud's,
which moves every κ-th round; clients train from their edge's, and are scored with it.

With κ = 1 every x_e is x when a round begins, and the weighted mean of weighted means is the
weighted mean over all clients: Σ_e Ω_e (Σ_{k in e} w_k (y_k − x) / Ω_e) / Σ_e Ω_e. It is taken
so, in one pass, and equals FedAvg on a star bit for bit.

Shapes: E edge servers, `[E, ...]` one row for each; `[K, ...]` one row per client of a chunk.

Differs from the paper: an edge server without replies keeps its model, with weight 0 at the cloud
if it had none since the last time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from fedsim.client import ClientHalf
from fedsim.errors import ResumeError
from fedsim.parts import Range
from fedsim.personal import average
from fedsim.records import Params, PayloadOf, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round, State
from fedsim.topology.base import TopologyKind, edge_of
from fedsim.topology.traffic import ThroughEdges, Traffic
from strategies.gossiping import OwnModel, repeated

EDGES, WEIGHT = "edges/", "edge-weight"


@dataclass(kw_only=True)
class HierFAVG(FedsimStrategy):
    """Weighted means at edge servers, and of these at the cloud.

    Attributes:
        cloud_period: κ, in rounds; 1 is FedAvg.
        weighting: `examples` or `uniform`.
    """

    topologies: ClassVar[frozenset[TopologyKind]] = frozenset({"hierarchical"})
    sends_model: ClassVar[bool] = False

    cloud_period: Annotated[int, Range(ge=1)] = 2
    weighting: Literal["examples", "uniform"] = "examples"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._edges: Params = {}  # none: all have the cloud's model
        self._weight_E = np.zeros(0)
        self._edge_N: np.ndarray | None = None

    @property
    def client_half(self) -> ClientHalf:
        return OwnModel()

    @property
    def edge_N(self) -> np.ndarray:
        """Which edge server each client is linked to, `[N]`."""
        if self._edge_N is None:
            clients = [n for n, role in self.graph.nodes(data="role") if role == "client"]
            self._edge_N = edge_of(self.graph, len(clients))
        return self._edge_N

    def client_payload(self, context: Round) -> PayloadOf:
        edge_N = self.edge_N

        def rows(clients: np.ndarray) -> Params:
            if not self._edges:
                return {n: x.expand(len(clients), *x.shape) for n, x in context.params.items()}
            index = torch.from_numpy(edge_N[clients])
            return {n: self._edges[n][index].to(x.device) for n, x in context.params.items()}

        return rows

    def evaluation_payload(self, context: Round) -> PayloadOf:
        return self.client_payload(context)

    def traffic(self, context: Round, exchange: str) -> Traffic:
        turn = exchange == "train" and context.server_round % self.cloud_period == 0
        return ThroughEdges(cloud=context.params if turn else None)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        if self.cloud_period == 1:
            return average(context.params, replies, weighting=self.weighting, server_lr=1.0)
        self._average_at_edges(context.params, replies)
        if context.server_round % self.cloud_period or not self._edges:
            return context.params
        total = UpdateSum(context.params)
        total.add(
            {n: t.to(context.params[n].device) for n, t in self._edges.items()}, self._weight_E
        )
        self._edges, self._weight_E = {}, np.zeros(0)
        return total.step(1 / total.weight)

    def _average_at_edges(self, params: Params, replies: Replies) -> None:
        """Average each edge server's replies; one that has none keeps its model."""
        sums: dict[int, UpdateSum] = {}
        for chunk in replies.chunks():
            if not len(chunk):
                continue
            weights, edge_K = chunk.weights(self.weighting), self.edge_N[chunk.client_index]
            for e in np.unique(edge_K).tolist():
                if e not in sums:
                    sums[e] = UpdateSum(self._model(e, params))
                mine = edge_K == e
                sums[e].add(chunk.rows(mine).arrays, weights[mine])
        if not sums:
            return
        if not self._edges:
            count = sum(role == "edge" for _, role in self.graph.nodes(data="role"))
            self._edges = {name: repeated(x.cpu(), count) for name, x in params.items()}
            self._weight_E = np.zeros(count)
        for e, total in sums.items():
            for name, x in total.step(1 / total.weight).items():
                self._edges[name][e] = x.cpu()
            self._weight_E[e] += total.weight

    def _model(self, edge: int, params: Params) -> Params:
        if not self._edges:
            return params
        return {name: self._edges[name][edge].to(x.device) for name, x in params.items()}

    def state_dict(self) -> State:
        if not self._edges:
            return {}
        edges = {EDGES + name: tensor.clone() for name, tensor in self._edges.items()}
        return {**edges, WEIGHT: self._weight_E.copy()}

    def load_state_dict(self, state: State) -> None:
        odd = sorted(key for key in state if key != WEIGHT and not key.startswith(EDGES))
        if odd or (WEIGHT in state) != any(key != WEIGHT for key in state):
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)[:8]}, which is not "
                "HierFAVG's; was the strategy changed?"
            )
        self._weight_E = torch.as_tensor(state.get(WEIGHT, np.zeros(0))).numpy().copy()
        self._edges = {
            name.removeprefix(EDGES): torch.as_tensor(value).clone()
            for name, value in state.items()
            if name.startswith(EDGES)
        }
