"""What every topology part gives: the links that one exchange's messages cross.

Edges carry `bandwidth` (bytes/s; infinite where nothing is said), `latency` (s) and `loss` (the
share of messages lost); nodes carry `role`: `client`, `edge` or `server`. How long messages take
over them, where the scenario has devices, is in `fedsim.network`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.parts import Part, Range

if TYPE_CHECKING:
    import networkx as nx

TopologyKind = Literal["star", "hierarchical", "peer"]
"""A server and its clients; edge servers between them; or clients alone, linked to one another."""

SERVER = "server"

TYPE: dict[TopologyKind, str] = {
    "star": "topology=star",
    "hierarchical": "topology=hierarchical",
    "peer": "topology=ring (or torus, random_regular, erdos_renyi, small_world, graphml)",
}
"""What to type for each kind."""

DRAWS = 100
"""How often a random graph is drawn until it is connected."""


class TopologyPart(Part, abc.ABC):
    """A communication graph, as the `topology` group of a scenario names it."""

    kind: ClassVar[TopologyKind]

    @abc.abstractmethod
    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        """Return the graph; client k is node k, the server (if there is one) is node `"server"`.

        Args:
            num_clients: N.
            seed: The scenario's; graphs that are drawn depend on it.

        Raises:
            ConfigError: There is no such graph of so many clients.
        """

    @abc.abstractmethod
    def hops(self) -> int:
        """Return how many links lie between a client and the server, or its neighbour."""


@dataclass(frozen=True, kw_only=True)
class Linked(TopologyPart, abc.ABC):
    """A topology whose links are alike.

    Attributes:
        bandwidth: Bytes per second; null: no limit but the devices' own.
        latency_s: Seconds.
        loss: Share of messages lost.
    """

    bandwidth: Annotated[float, Range(gt=0)] | None = None
    latency_s: Annotated[float, Range(ge=0)] = 0.0
    loss: Annotated[float, Range(ge=0, lt=1)] = 0.0

    @property
    def link(self) -> dict[str, float]:
        """The attributes of one edge."""
        return link(self.bandwidth, self.latency_s, self.loss)


@dataclass(frozen=True, kw_only=True)
class PeerToPeer(Linked, abc.ABC):
    """Clients that are linked to one another, and to no server."""

    kind = "peer"

    @abc.abstractmethod
    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        """Return a graph over 0..N-1, N > 1; a drawn one need not be connected."""

    def denser(self, num_clients: int) -> str:
        """Return what to type where no graph that was drawn is connected."""
        return "use another topology, e.g. topology=ring"

    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        import networkx as nx  # a tenth of a second, which a star of clients never needs

        peers = nx.Graph()
        peers.add_nodes_from(range(num_clients), role="client")
        if num_clients > 1:
            drawn = self._connected(num_clients, seed)
            peers.add_edges_from(sorted(tuple(sorted(edge)) for edge in drawn.edges), **self.link)
            peers.remove_edges_from(list(nx.selfloop_edges(peers)))
        return peers

    def hops(self) -> int:
        return 1

    def _connected(self, num_clients: int, seed: int) -> nx.Graph:
        import networkx as nx

        for draw in range(DRAWS):
            rng = seeds.rng(seed, 0, draw, "topology")
            graph = self.drawn(num_clients, rng)
            if nx.is_connected(graph):
                return graph
        raise ConfigError(
            f"{type(self).__name__}: none of {DRAWS} graphs of {num_clients} clients was "
            f"connected; {self.denser(num_clients)}"
        )


def link(bandwidth: float | None, latency_s: float, loss: float) -> dict[str, float]:
    """Return the attributes of an edge."""
    unlimited = math.inf if bandwidth is None else bandwidth
    return {"bandwidth": unlimited, "latency": latency_s, "loss": loss}


def edge_of(graph: nx.Graph, num_clients: int) -> np.ndarray:
    """Return the edge server of each client, int64 `[N]`: a position among the graph's.

    Raises:
        ConfigError: A client has none, or several.
    """
    edges = [node for node, role in graph.nodes(data="role") if role == "edge"]
    number = {node: e for e, node in enumerate(edges)}
    found = [[number[n] for n in graph[k] if n in number] for k in range(num_clients)]
    for client, servers in enumerate(found):
        if len(servers) != 1:
            raise ConfigError(
                f"client {client} is linked to {len(servers)} edge servers, not to one; use "
                f"{TYPE['hierarchical']}"
            )
    return np.array(found, np.int64).reshape(num_clients)
