"""A ring: every client is linked to the one before and the one after it."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np

from fedsim.topology.base import PeerToPeer


@dataclass(frozen=True, kw_only=True)
class Ring(PeerToPeer):
    """Two neighbours each."""

    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        return nx.cycle_graph(num_clients)
