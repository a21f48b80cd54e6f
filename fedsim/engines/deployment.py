"""Real devices: Flower SuperNodes, reached through the SuperLink that runs the server app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flwr.serverapp import Grid

from fedsim.client.runtime import ClientRuntime
from fedsim.engines.base import EnginePart
from fedsim.engines.remote import RemoteGrid
from fedsim.errors import ConfigError
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Deployment(EnginePart):
    """Flower's deployment runtime; `fedsim deploy` sets this engine.

    Attributes:
        min_clients: How many clients must be connected before the first round; null for all. Later,
            a round goes on with those of its participants that are connected, at least one.
        connect_s: Seconds to wait for them.
    """

    deployed = True

    min_clients: Annotated[int, Range(ge=1)] | None = None
    connect_s: Annotated[float, Range(gt=0)] = 300.0

    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> RemoteGrid:
        if flower_grid is None:
            raise ConfigError(
                "engine=deployment: real devices are reached through a Flower SuperLink; use "
                "fedsim deploy scenario=NAME --local 3 (or --to NAME), or simulate it here with "
                "engine=cohort, which costs the same messages and bytes"
            )
        num_clients = runtime.partition.num_clients
        if (self.min_clients or 0) > num_clients:
            raise ConfigError(
                f"engine.min_clients: {self.min_clients} of {num_clients} clients; lower it, or "
                "raise partition.num_clients"
            )
        grid = RemoteGrid(flower_grid, num_clients, self.connect_s)
        grid.gather(self.min_clients or num_clients)
        return grid
