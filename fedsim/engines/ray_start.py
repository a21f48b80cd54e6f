"""Starts Ray on this machine, or joins a cluster; the only file that imports it.

Ray is an extra. Its processes find our code where this process found it, since an editable install
elsewhere would otherwise be imported in its place; they keep their log lines to their own files.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedsim.client.runtime import ClientRuntime
from fedsim.engines import recipe
from fedsim.errors import ConfigError, FedsimError


class EngineDiedError(FedsimError):
    """What runs the clients has ended in the middle of a run."""


INSTALL = "pip install -c constraints.txt -e '.[ray]'"
"""Never by the name of the distribution: who has the engines in a checkout installs from there."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, none seen: see the YAML
}
KNOCK_S = 10.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Beside `torch.set_num_threads(1)`: Ray would give each process as many threads as it has CPUs."""


@dataclass(frozen=True)
class Ray:
    """A connection to Ray, and whether it is ours to end."""

    module: Any
    ours: bool

    def stop(self) -> None:
        """End what was started for this run: all of Ray's processes, or the link to a cluster."""
        if self.ours and self.module.is_initialized():
            self.module.shutdown()


def need(engine: str) -> Any:
    """Return the module `ray`.

    Raises:
        ConfigError: It is not installed, or does not work here.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            f"engine={engine}: Ray is not installed here; in a checkout of fedsim, type\n"
            f"  {INSTALL}\nor use engine=cohort, which needs nothing more"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"engine={engine}: Ray is installed but cannot be imported ({error}); type\n  {INSTALL}"
        ) from error


def connect(engine: str, address: str | None, *, cpus: float | None) -> Ray:
    """Start Ray on this machine, or join the cluster at `address`.

    Where this process has started Ray itself, that one is used and left running.

    Args:
        engine: For error messages.
        address: `host:port`, `auto`, or `ray://host:port`; None for this machine.
        cpus: How many CPUs the run may take on this machine; None for all.

    Raises:
        ConfigError: Ray cannot be started or reached.
    """
    ray = need(engine)
    if ray.is_initialized():
        return Ray(ray, ours=False)
    options: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address is None:
        options |= {"address": "local"}
        options |= {} if cpus is None else {"num_cpus": math.ceil(cpus)}
    else:
        options |= {"address": address}
    variables = {**ONE_THREAD, **QUIET, "PYTHONPATH": os.pathsep.join(_our_path())}
    try:
        with (
            _ctrl_c_waits(),
            warnings.catch_warnings(),
            _environment(variables if address is None else {}),
        ):
            # What a local raylet inherits, its workers have: they need not start anew for this run.
            runtime_env = {} if address is None else {"env_vars": variables}
            _knock(address)
            warnings.simplefilter("ignore", FutureWarning)  # that the above is to change some day
            ray.init(**options, runtime_env=runtime_env)
    except Exception as error:
        ray.shutdown()
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address is None:
            raise ConfigError(
                f"engine={engine}: Ray does not start on this machine ({first}); is there room for "
                "it in the folder for temporary files, and in shared memory?"
            ) from error
        raise ConfigError(
            f"engine.address: no Ray cluster answers at {address!r} ({first}); start one with "
            "`ray start --head`, or leave engine.address=null to start Ray on this machine"
        ) from error
    except BaseException:  # Ctrl-C
        ray.shutdown()
        raise
    return Ray(ray, ours=True)


def _knock(address: str | None) -> None:
    """Raise `OSError` if nobody listens at `host:port`; Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def capacity(ray: Any, num_cpus: float, num_gpus: float) -> int:
    """Return how many actors of a size fit into Ray's nodes; an actor does not span two.

    Raises:
        ConfigError: None does.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = 0
    for node in nodes:
        kinds = [("CPU", num_cpus), ("GPU", num_gpus)]
        room = [node.get(kind, 0) / size for kind, size in kinds if size]
        fit += int(min(room) + 1e-9) if room else 0
    if fit == 0:
        cpus = max((node.get("CPU", 0) for node in nodes), default=0)
        gpus = max((node.get("GPU", 0) for node in nodes), default=0)
        too_much = "num_cpus" if num_cpus > cpus else "num_gpus"
        raise ConfigError(
            f"engine.{too_much}: an actor of num_cpus={num_cpus:g}, num_gpus={num_gpus:g} fits "
            f"nowhere; Ray's largest nodes have {cpus:g} CPUs, {gpus:g} GPUs. Lower "
            f"engine.{too_much}" + (" to 0 to run on CPUs" if too_much == "num_gpus" else "")
        )
    return fit


def check_gpus(num_gpus: float) -> None:
    """Check that Ray can give this many GPUs to one actor.

    Raises:
        ConfigError: It cannot.
    """
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise ConfigError(
            f"num_gpus: {num_gpus:g} is not allowed; a share of one GPU (as 0.25), or whole GPUs"
        )


def check_run(engine: str, runtime: ClientRuntime, flower_grid: Grid | None) -> str:
    """Check that another process can make this run's client side; return the scenario's device.

    Raises:
        ConfigError: It cannot.
    """
    if flower_grid is not None:
        raise ConfigError(f"engine={engine}: Flower has started this run already; use fedsim run")
    if not runtime.recipe:
        raise ConfigError(
            f"engine={engine}: Ray's actors build the run from its scenario, and this one was put "
            "together by hand; use engine=cohort or engine=in_process"
        )
    return recipe.read(runtime.recipe)[0].settings.device


def check_device(device: str, num_gpus: float) -> None:
    """Check that actors see the device that the scenario asks for.

    Raises:
        ConfigError: They would not: Ray hides GPUs from actors that ask for none.
    """
    if device.startswith("cuda") and not num_gpus:
        raise ConfigError(
            f"device={device}: with engine.num_gpus=0 Ray hides the GPUs from its actors; set "
            "engine.num_gpus=1 (or a fraction), or device=auto"
        )


def _our_path() -> list[str]:
    """Return where this process finds code, without the interpreter's own places."""
    own = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    here = str(Path(__file__).resolve().parents[2])
    places = [here, *(str(Path(entry or ".").resolve()) for entry in sys.path)]
    return [
        place
        for place in dict.fromkeys(places)
        if place == here or not own.intersection([Path(place), *Path(place).parents])
    ]


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back: of a Ray that is half started, processes live on for half a minute."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
