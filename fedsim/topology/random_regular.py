"""A random regular graph: all clients have the same number of neighbours, who are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.topology.base import PeerToPeer


@dataclass(frozen=True, kw_only=True)
class RandomRegular(PeerToPeer):
    """Drawn among connected graphs (Steger and Wormald 1999: near to uniformly).

    Attributes:
        degree: Neighbours of each client.
    """

    degree: Annotated[int, Range(ge=1)] = 4

    def denser(self, num_clients: int) -> str:
        return f"set topology.degree={2 * self.degree} or more"

    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        if self.degree >= num_clients or self.degree * num_clients % 2:
            raise ConfigError(
                f"degree: {num_clients} clients cannot have {self.degree} neighbours each: it must "
                "be below their number, and one of the two even; set e.g. "
                f"topology.degree={2 if num_clients > 2 else 1}"
            )
        if self.degree == 1 and num_clients > 2:
            raise ConfigError(
                "degree: 1: pairs of clients, which nothing links to one another; set "
                "topology.degree=2 or more"
            )
        return nx.random_regular_graph(self.degree, num_clients, seed=int(rng.integers(2**32)))
