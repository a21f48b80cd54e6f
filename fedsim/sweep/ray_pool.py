"""Where the points of a sweep run: on an existing Ray cluster, one CPU each.

The nodes must see the run folders under the same paths (a shared file system), as Ray's own tools
ask for, too. Ray is an extra.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsim.engines.ray_start import INSTALL, Ray, connect
from fedsim.errors import ConfigError
from fedsim.sweep.point import Job, run_point
from fedsim.sweep.processes import Pool


class RayPool(Pool):
    """Tasks on a Ray cluster.

    Args:
        address: `host:port`, `auto` or `ray://host:port`.
        jobs: How many at once; None for as many as the cluster has CPUs.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, jobs: int | None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                f"--ray {address}: Ray is not installed here; in a checkout of fedsim, type\n"
                f"  {INSTALL}\nor leave --ray out: points then run in processes of this machine"
            )
        self._link = _connect(address)
        self._ray = self._link.module
        self._jobs = jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_task)
        self._running: dict[Any, int] = {}

    @property
    def slots(self) -> int:
        return self._jobs

    def start(self, number: int, job: Job, log: Path) -> None:
        self._running[self._task.remote(asdict(job), os.getcwd())] = number

    def ended(self) -> Iterator[tuple[int, int, str]]:
        if not self._running:
            return
        done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in done:
            number = self._running.pop(reference)
            try:
                code, reason = self._ray.get(reference)
            except Exception as error:  # Ray has a class for each way to lose a task
                code, reason = 1, str(error).strip().split("\n")[0] or type(error).__name__
            yield number, int(code), str(reason)

    def kill(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=10)
        self._running.clear()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._link.stop()


def _task(job: dict[str, Any], folder: str) -> tuple[int, str]:
    """Run a point in a worker of Ray's."""
    os.chdir(folder)
    return run_point(Job(**{**job, "overrides": tuple(job["overrides"])}))


def _connect(address: str) -> Ray:
    try:
        return connect("ray", address, cpus=None)
    except ConfigError as error:
        first = (str(error.__cause__ or error).strip().splitlines() or ["no answer"])[0]
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers ({first}); start one with "
            "`ray start --head`, or leave --ray out: points then run in processes of this machine"
        ) from error
