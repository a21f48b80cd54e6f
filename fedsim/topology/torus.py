"""A torus: clients on a grid whose borders are joined, linked to the four around them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.topology.base import PeerToPeer


@dataclass(frozen=True, kw_only=True)
class Torus(PeerToPeer):
    """Client k lies in row k // columns.

    Attributes:
        rows: How many; null: as near to the number of columns as can be.
    """

    rows: Annotated[int, Range(ge=2)] | None = None

    def drawn(self, num_clients: int, rng: np.random.Generator) -> nx.Graph:
        root = math.isqrt(num_clients)
        rows = self.rows or max(r for r in range(1, root + 1) if num_clients % r == 0)
        columns, left = divmod(num_clients, rows)
        if left or rows == 1 or columns == 1:
            raise ConfigError(
                f"rows: {num_clients} clients make no grid of "
                f"{self.rows or 'two or more'} rows and two or more columns; set "
                f"partition.num_clients={max(2, root) ** 2}, or use topology=ring"
            )
        grid = nx.grid_2d_graph(rows, columns, periodic=True)
        return nx.relabel_nodes(grid, {(r, c): r * columns + c for r, c in grid.nodes})
