"""The star of ordinary federated learning: every client is linked to the server."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from fedsim.topology.base import SERVER, Linked


@dataclass(frozen=True, kw_only=True)
class Star(Linked):
    """One link per client."""

    kind = "star"

    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        star = nx.Graph()
        star.add_node(SERVER, role="server")
        star.add_nodes_from(range(num_clients), role="client")
        star.add_edges_from(((SERVER, client) for client in range(num_clients)), **self.link)
        return star

    def hops(self) -> int:
        return 1
