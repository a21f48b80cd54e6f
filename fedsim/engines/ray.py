"""Flower's own simulation engine: virtual nodes whose client apps run in Ray's actors.

Flower's `run_simulation` owns the control flow: it starts Ray's actors and calls a `ServerApp`
in a thread. Here the round loop owns it, so the simulation runs in a thread of its own, with a
server app that hands its grid over and then waits until the grid is closed.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim.client.app import make_client_app
from fedsim.client.runtime import ClientRuntime
from fedsim.engines import ray_start, recipe
from fedsim.engines.base import EnginePart, reason
from fedsim.engines.flwr_compat import become_task_of, client_error, simulate
from fedsim.engines.remote import RemoteGrid
from fedsim.errors import ConfigError, TooFewClientsError
from fedsim.parts import Range

MAX_CLIENTS = 5_000
"""Flower's engine looks through all messages for each virtual node, ten times a second."""

WINDOW = 100
"""Messages under way at a time: what the engine looks through then stays small."""

STOP_S = 30.0
"""How long the engine may take to end by itself; a client's work is not interrupted."""


@dataclass(frozen=True, kw_only=True)
class Ray(EnginePart):
    """Flower's simulation engine on Ray.

    Attributes:
        num_cpus, num_gpus: What one client asks for; Ray runs as many at a time as fit. Fractions
            share a device. With `num_gpus` 0, Ray hides all GPUs from the clients.
        actors: How many clients run at a time on this machine; null for as many as fit.
        address: An existing Ray cluster (`host:port` or `auto`); null starts Ray here.
        start_s: Seconds that actors and virtual nodes may take to be ready.
    """

    num_cpus: Annotated[float, Range(gt=0)] = 1.0
    num_gpus: Annotated[float, Range(ge=0)] = 0.0
    actors: Annotated[int, Range(ge=1)] | None = None
    address: str | None = None
    start_s: Annotated[float, Range(gt=0)] = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ray_start.check_gpus(self.num_gpus)
        if self.actors is not None and self.address is not None:
            raise ConfigError(
                "actors: on an existing cluster Flower's engine takes all that fits; leave "
                "engine.actors=null and raise engine.num_cpus, or use engine=ray_cohort"
            )

    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> RayGrid:
        device = ray_start.check_run("ray", runtime, flower_grid)
        ray_start.check_device(device, self.num_gpus)
        num_clients = runtime.partition.num_clients
        if num_clients > MAX_CLIENTS:
            raise ConfigError(
                f"engine=ray: Flower's engine keeps a node for each of {num_clients:,} clients and "
                f"is of no use beyond {MAX_CLIENTS:,}; use engine=ray_cohort, or engine=cohort"
            )
        cpus = None if self.actors is None else self.actors * self.num_cpus
        ray = ray_start.connect("ray", self.address, cpus=cpus)
        simulation = None
        try:
            ray_start.capacity(ray.module, self.num_cpus, self.num_gpus)
            resources = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            simulation = Simulation(RecipeApp(runtime.recipe), num_clients, resources, ray)
            flower_grid = simulation.flower_grid(self.start_s)
            grid = RayGrid(simulation, flower_grid, num_clients, self.start_s)
            grid.gather(num_clients)
        except BaseException:  # Ctrl-C, too
            if simulation is not None:
                simulation.close()
            ray.stop()
            raise
        return grid


class RecipeApp(ClientApp):
    """The client app of a run: a class that Ray's actors import, and the run as one string."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __reduce__(self) -> tuple[type[RecipeApp], tuple[str]]:
        return RecipeApp, (self.text,)  # Flower sends the app with every message

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            return _app(self.text)(message, context)
        except Exception as error:  # data, as on every engine; Flower would lose its name
            return client_error(message, reason(error))


@lru_cache(maxsize=2)
def _app(text: str) -> ClientApp:
    return make_client_app(lambda _: recipe.runtime(text), zero_copy=False)


class Simulation(threading.Thread):
    """A simulation of Flower's that runs until it is closed, or until the program ends.

    Args:
        client_app: What the virtual nodes run.
        num_clients: How many there are.
        resources: `num_cpus` and `num_gpus` of one actor.
        ray: What it runs on; Flower ends it.
    """

    def __init__(
        self, client_app: ClientApp, num_clients: int, resources: dict[str, float], ray: Any
    ) -> None:
        super().__init__(name="flower-simulation", daemon=True)
        self.client_app = client_app
        self.num_clients = num_clients
        self.resources = resources
        self.ray = ray
        self._grids: queue.Queue[Grid] = queue.Queue()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self._grids.put(grid)
            # Flower's threads would keep a program alive that has failed to close its grid.
            while not self._closing.wait(0.5) and threading.main_thread().is_alive():
                pass

        try:
            simulate(app, self.client_app, self.num_clients, self.resources)
        except BaseException as error:  # is raised again in the thread that runs the rounds
            self._failure = error

    def flower_grid(self, timeout: float) -> Grid:
        """Return the grid that Flower has handed to the server app."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                return self._grids.get(timeout=0.2)
            except queue.Empty:
                self.check()
        raise ray_start.EngineDiedError(
            f"engine=ray: Flower's engine has not started within {timeout:g} s"
        )

    def check(self) -> None:
        """Raise if the simulation has ended.

        Raises:
            EngineDiedError: It has.
        """
        if not self.is_alive():
            first, cause = self._failure, self._failure
            while cause is not None and (cause.__cause__ or cause.__context__) is not None:
                cause = cause.__cause__ or cause.__context__
            raise ray_start.EngineDiedError(
                f"engine=ray: Flower's engine has ended ({type(cause).__name__}: {cause})"
            ) from first

    def close(self) -> None:
        """End the simulation, its actors, and Ray if it was started for it."""
        self._closing.set()
        self.join(STOP_S)
        self.ray.stop()  # Flower has done so already, unless it hangs on a client
        self.join(STOP_S)


class RayGrid(RemoteGrid):
    """Flower's grid of a simulation, addressed by client index.

    Args:
        simulation: What answers.
        flower_grid: The grid that leads to it.
        num_clients: N.
        start_s: Seconds to wait until all of them are there.
    """

    poll_s = look_s = 0.05
    at_once = WINDOW

    def __init__(
        self, simulation: Simulation, flower_grid: Grid, num_clients: int, start_s: float
    ) -> None:
        super().__init__(flower_grid, num_clients, start_s)
        self.simulation = simulation

    def gather(self, minimum: int, among: Collection[int] | None = None) -> None:
        try:
            super().gather(minimum, among)
        except TooFewClientsError as error:
            raise TooFewClientsError(
                f"engine=ray: of {self.num_clients} virtual clients, some have not answered within "
                f"{self.connect_s:g} s; are the cluster's actors busy with other work? Raise "
                "engine.start_s"
            ) from error

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send a window of messages after another: their number times that of all nodes counts."""
        messages = list(messages)
        replies: list[Message] = []
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        for start in range(0, len(messages), WINDOW):
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            window = messages[start : start + WINDOW]
            replies += super().send_and_receive(window, timeout=left)
        return replies

    def _meet(self, *, now: bool = False) -> None:
        self.simulation.check()
        become_task_of(self.run.run_id)  # another grid of this process may have changed it
        super()._meet(now=now)

    def close(self) -> None:
        self.simulation.close()
