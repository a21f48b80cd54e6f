"""The star of ordinary federated learning: every client is linked to the server."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from fedsim.topology.base import TopologyPart


@dataclass(frozen=True, kw_only=True)
class Star(TopologyPart):
    """One link per client."""

    def graph(self, num_clients: int) -> nx.Graph:
        star = nx.Graph()
        star.add_edges_from(("server", client) for client in range(num_clients))
        return star

    def hops(self) -> int:
        return 1
