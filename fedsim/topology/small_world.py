"""A small world (Watts and Strogatz 1998): a ring lattice, some of whose links are rewired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.topology.base import PeerToPeer


@dataclass(frozen=True, kw_only=True)
class SmallWorld(PeerToPeer):
    """Drawn until it is connected.

    Attributes:
        neighbours: Of each client in the lattice; even.
        rewired: Probability that a link gets another end.
    """

    neighbours: Annotated[int, Range(ge=2)] = 4
    rewired: Annotated[float, Range(ge=0, le=1)] = 0.1

    def denser(self, num_clients: int) -> str:
        return "set topology.neighbours to more, or topology.rewired to less"

    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        if self.neighbours % 2 or self.neighbours >= num_clients:
            raise ConfigError(
                f"neighbours: {self.neighbours} of {num_clients} clients: it must be even, and "
                "below their number; "
                + ("set e.g. topology.neighbours=2" if num_clients > 2 else "use topology=ring")
            )
        return nx.watts_strogatz_graph(
            num_clients, self.neighbours, self.rewired, seed=int(rng.integers(2**32))
        )
