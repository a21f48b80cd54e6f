"""An Erdős-Rényi graph: each pair of clients is linked with the same probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np

from fedsim.parts import Range
from fedsim.topology.base import PeerToPeer


@dataclass(frozen=True, kw_only=True)
class ErdosRenyi(PeerToPeer):
    """Drawn until it is connected.

    Attributes:
        probability: Of each link; null: 2 ln N / N, twice where connected graphs become likely.
    """

    probability: Annotated[float, Range(gt=0, le=1)] | None = None

    def denser(self, num_clients: int) -> str:
        enough = min(1.0, 2 * math.log(num_clients) / num_clients)
        return f"set topology.probability={enough:.2g} or more"

    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        p = self.probability or min(1.0, 2 * math.log(num_clients) / num_clients)
        return nx.fast_gnp_random_graph(num_clients, p, seed=int(rng.integers(2**32)))
