"""The star of ordinary federated learning: every client is linked to the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.topology.base import SERVER, Linked

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, kw_only=True)
class Star(Linked):
    """One link per client."""

    kind = "star"

    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        import networkx as nx

        star = nx.Graph()
        star.add_node(SERVER, role="server")
        star.add_nodes_from(range(num_clients), role="client")
        star.add_edges_from(((SERVER, client) for client in range(num_clients)), **self.link)
        return star

    def hops(self) -> int:
        return 1
