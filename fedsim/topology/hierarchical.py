"""Edge servers between the devices and the cloud: each device is linked to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import networkx as nx
import numpy as np

from fedsim import seeds
from fedsim.parts import Range
from fedsim.topology.base import SERVER, Linked, link


@dataclass(frozen=True, kw_only=True)
class Hierarchical(Linked):
    """Devices, edge servers (nodes `"edge-0"`, ...), and the cloud (node `"server"`).

    Attributes:
        edge_servers: How many.
        assignment: `contiguous`: devices k, k + 1, ... share one, in groups of about equal size;
            `drawn`: each device's is drawn, so that groups differ, and may be empty.
        cloud_bandwidth, cloud_latency_s, cloud_loss: Of the links between edge servers and cloud;
            the other three are the devices'.
    """

    kind = "hierarchical"

    edge_servers: Annotated[int, Range(ge=1)] = 5
    assignment: Literal["contiguous", "drawn"] = "contiguous"
    cloud_bandwidth: Annotated[float, Range(gt=0)] | None = None
    cloud_latency_s: Annotated[float, Range(ge=0)] = 0.0
    cloud_loss: Annotated[float, Range(ge=0, lt=1)] = 0.0

    def graph(self, num_clients: int, seed: int = 0) -> nx.Graph:
        tree, names = nx.Graph(), [f"edge-{e}" for e in range(self.edge_servers)]
        tree.add_node(SERVER, role="server")
        tree.add_nodes_from(names, role="edge")
        tree.add_nodes_from(range(num_clients), role="client")
        backhaul = link(self.cloud_bandwidth, self.cloud_latency_s, self.cloud_loss)
        tree.add_edges_from(((SERVER, name) for name in names), **backhaul)
        edge_N = np.arange(num_clients) * self.edge_servers // max(1, num_clients)
        if self.assignment == "drawn":
            rng = seeds.rng(seed, 0, seeds.SERVER, "topology")
            edge_N = rng.integers(self.edge_servers, size=num_clients)
        links = ((names[e], client) for client, e in enumerate(edge_N.tolist()))
        tree.add_edges_from(links, **self.link)
        return tree

    def hops(self) -> int:
        return 2
