"""What strategies share whose nodes have models of their own, and average them with neighbours.

There is no server in such a network. The one of the simulation keeps the books: it holds every
node's model between rounds, hands it to its node, takes it back after the local work, and does the
averaging that neighbours would do among themselves. The run's model is the mean of all nodes'.

Of a round's nodes those take part whose replies were admitted. An absent node keeps its model, and
what others would give to its model they give to their own (`fedsim.topology.mixing.among`).

Shapes: N nodes, S of them in a round, `[N, ...]` one row for each; P numbers of one tensor.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedsim.client import ClientContext, ClientHalf
from fedsim.errors import ResumeError
from fedsim.records import Params, PayloadOf
from fedsim.strategy import FedsimStrategy, Round, State
from fedsim.topology.base import TopologyKind
from fedsim.topology.mixing import among, metropolis_hastings
from fedsim.topology.traffic import AmongNeighbours, Traffic

NODES = "nodes/"

BLOCK_BYTES = 2**20
"""How much of the nodes' models is averaged at a time."""


class OwnModel(ClientHalf):
    """Local work that begins with the node's own model, which is what `client-arrays` hold."""

    def begin(self, params: Params, context: ClientContext) -> Params:
        return {n: t for n, t in context.arrays.items() if "/" not in n}


@dataclass(kw_only=True)
class Gossiping(FedsimStrategy, abc.ABC):
    """Nodes that average with their neighbours."""

    topologies: ClassVar[frozenset[TopologyKind]] = frozenset({"peer"})
    sends_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._models: Params = {}
        self._weights_NN: sparse.csr_matrix | None = None

    @property
    def weights(self) -> sparse.csr_matrix:
        """W, `[N, N]`, if all take part."""
        if self._weights_NN is None:
            graph = self.graph
            self._weights_NN = metropolis_hastings(graph, len(graph))
        return self._weights_NN

    @property
    def nodes(self) -> Mapping[str, Tensor]:
        """The nodes' models, name -> `[N, ...]`, on the CPU; empty before the first round."""
        return self._models

    def consensus_distance(self) -> float:
        """Return the root of the mean squared distance of the nodes' models from their mean."""
        return math.sqrt(sum(map(spread, self._models.values())))

    def diagnostics(self) -> dict[str, float]:
        return {"consensus-distance": self.consensus_distance()}

    def client_payload(self, context: Round) -> PayloadOf:
        self.fit(context)
        device = next(iter(context.params.values())).device

        def rows(clients: np.ndarray) -> Params:
            index = torch.from_numpy(np.asarray(clients, np.int64))
            return {name: t[index].to(device) for name, t in self.sent().items()}

        return rows

    def sent(self) -> Params:
        """Return what nodes are sent, name -> `[N, ...]`: their models, and whatever else."""
        return self._models

    def evaluation_payload(self, context: Round) -> PayloadOf:
        return self.client_payload(context)

    def traffic(self, context: Round, exchange: str) -> Traffic:
        copy = self.copy(context.params) if exchange == "train" else None  # nodes score themselves
        return AmongNeighbours(copy=copy)

    def copy(self, params: Params) -> Params:
        """Return what a node sends each of its neighbours in a round, in names and shapes."""
        return params

    def fit(self, context: Round) -> None:
        """Give all nodes the initial model, before the first round.

        Raises:
            ResumeError: The state is of another model, or of another number of nodes.
        """
        count, params = context.num_clients, context.params
        if not self._models:
            # NumPy's copies begin where PyTorch's would, and are written to.
            self._models = {n: repeated(t.cpu(), count) for n, t in params.items()}
        shapes = {name: (count, *t.shape) for name, t in params.items()}
        if shapes != {name: tuple(t.shape) for name, t in self._models.items()}:
            raise ResumeError(
                f"the nodes' models in the checkpoint are not {count} of this model; was the model "
                "or the partition changed?"
            )

    def mixed(self, context: Round, who: np.ndarray) -> Params:
        """Replace the models of those who take part by W's averages; return the mean of all N."""
        weights_SS = among(self.weights, who)
        return {
            name: mix_(self._models[name], weights_SS, who, x.cpu()).to(x.device)
            for name, x in context.params.items()
        }

    def state_dict(self) -> State:
        return {NODES + name: tensor.clone() for name, tensor in self._models.items()}

    def load_state_dict(self, state: State) -> None:
        self._models = self.table(state, NODES)
        self.check_state(state, NODES)

    def table(self, state: State, prefix: str) -> Params:
        """Return the tensors of a state whose names begin so."""
        return {
            name.removeprefix(prefix): torch.as_tensor(value).clone()
            for name, value in state.items()
            if name.startswith(prefix)
        }

    def check_state(self, state: State, *prefixes: str) -> None:
        """Refuse a state that holds anything else.

        Raises:
            ResumeError: It does.
        """
        odd = sorted(key for key in state if not key.startswith(prefixes))
        if odd:
            raise ResumeError(
                f"the checkpoint holds strategy state {odd[:8]}, which is not "
                f"{type(self).__name__}'s; was the strategy changed?"
            )


def repeated(tensor: Tensor, count: int) -> Tensor:
    """Return `count` copies of a tensor, `[count, ...]`."""
    return tensor.expand(count, *tensor.shape).clone(memory_format=torch.contiguous_format)


def mix_(rows_N: Tensor, weights_SS: sparse.csr_matrix, who: np.ndarray, x: Tensor) -> Tensor:
    """Average the rows of those who take part in place; return the mean of all rows.

    A sparse product over `[S, P]`, of the rows' distances from `x`: these are small beside the
    models, so that rows that are equal stay so to the last bit, whatever W's rounding. Some columns
    at a time, so that what is made on the way stays in the cache.
    """
    flat_NP = rows_N.view(len(rows_N), -1).numpy()
    real = rows_N.is_floating_point()
    x_P = x.reshape(-1).numpy() if real else x.reshape(-1).double().numpy()
    weights_SS = weights_SS.astype(x_P.dtype)
    everybody = len(who) == len(rows_N)
    share_N = np.full(len(rows_N), 1 / len(rows_N), x_P.dtype)
    mean_P = np.empty_like(x_P)
    width = max(16, BLOCK_BYTES // (x_P.itemsize * len(rows_N)))
    for start in range(0, len(x_P), width):
        part = slice(start, start + width)
        block_NB, x_B = flat_NP[:, part], x_P[part]
        away_SB = (block_NB if everybody else block_NB[who]) - x_B
        new_SB = weights_SS @ away_SB
        away_NB = new_SB
        if not everybody:
            away_NB = block_NB - x_B
            away_NB[who] = new_SB
        mean_P[part] = x_B + share_N @ away_NB
        new_SB += x_B
        if not real:
            new_SB = new_SB.round()
        if everybody:
            block_NB[:] = new_SB
        else:
            block_NB[who] = new_SB
    mean = torch.from_numpy(mean_P if real else mean_P.round())
    return mean.view(x.shape).to(x.dtype)


def spread(rows_N: Tensor) -> float:
    """Return the mean squared distance of some rows from their mean.

    Of their distances from the first row, which are small beside the models; some columns at a
    time, as in `mix_`. Rows that are equal are at 0.
    """
    rows_N = rows_N if rows_N.is_floating_point() else rows_N.double()
    flat_NP: np.ndarray = rows_N.view(len(rows_N), -1).numpy()
    share_N = np.full(len(rows_N), 1 / len(rows_N), flat_NP.dtype)
    width, total = max(16, BLOCK_BYTES // (flat_NP.itemsize * len(rows_N))), 0.0
    for start in range(0, flat_NP.shape[1], width):
        block_NB = flat_NP[:, start : start + width]
        away_NB = block_NB - block_NB[0]
        away_NB -= share_N @ away_NB
        total += float(np.vdot(away_NB, away_NB))
    return total / len(rows_N)


def put_(rows_N: Tensor, clients: np.ndarray, rows_K: Tensor) -> None:
    """Replace some rows; NumPy's assignment is several times as fast as PyTorch's."""
    rows_N.numpy()[clients] = rows_K.to("cpu", rows_N.dtype).numpy()
