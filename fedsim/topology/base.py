"""What every topology part gives: the links that one exchange's messages cross."""

from __future__ import annotations

import abc

import networkx as nx

from fedsim.parts import Part


class TopologyPart(Part, abc.ABC):
    """A communication graph, as the `topology` group of a scenario names it."""

    @abc.abstractmethod
    def graph(self, num_clients: int) -> nx.Graph:
        """Return the graph; client k is node k, the server is node `"server"`."""

    @abc.abstractmethod
    def hops(self) -> int:
        """Return how many links lie between a client and the server."""
