"""What `fedsim deploy` does with a run: on loopback, or on a SuperLink that is there already."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fedsim.config import Config, compose
from fedsim.deploy import server_lines
from fedsim.deploy.local import LocalDeployment
from fedsim.deploy.submission import SuperLink, SuperLinkError
from fedsim.engines import recipe
from fedsim.errors import ConfigError, FedsimError, ResumeError
from fedsim.progress import Display
from fedsim.results import RunFolder

log = logging.getLogger(__name__)

ENGINE = "fedsim.engines.deployment.Deployment"
EVERY_ROUND = "checkpoint.every=1"
"""Over a scenario, under the user's overrides: a deployed round is too dear to be lost."""


class DeployedError(FedsimError):
    """A deployed run ended early; the exit code is that of the error on the SuperLink's host."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """One go at a deployed run.

    Attributes:
        config: The run.
        smoke: Cut it down.
        folder: Its folder on the SuperLink's host; empty for a new one there.
        extend: Go on until this round; 0: as planned.
        how_to_resume: What to type to go on if it is interrupted.
    """

    config: Config
    smoke: bool = False
    folder: str = ""
    extend: int = 0
    how_to_resume: str = ""

    def on(self, superlink: SuperLink, display: Display) -> str:
        """Run it on a SuperLink, showing it as it goes; return where its folder is there.

        Raises:
            DeployedError: It ended early.
            SuperLinkError: The SuperLink cannot be reached, or was lost.
            KeyboardInterrupt: It was interrupted, and has been stopped.
        """
        scenario = recipe.write(self.config, smoke=self.smoke)
        run = superlink.submit(scenario, folder=self.folder, extend=self.extend)
        outcome: dict[str, Any] = {}
        try:
            with _interruptible(), display as shown:
                for said in superlink.follow(run):
                    if "round" in said:
                        shown.show(server_lines.report(said), int(said["last_round"]))
                    elif "exit" in said:
                        outcome = said
        except KeyboardInterrupt as interrupt:
            try:
                superlink.stop(run)
            except FedsimError as error:  # it has just ended, or the SuperLink is gone
                interrupt.add_note(f"the run was not stopped: {error}")
            interrupt.add_note(f"go on from the latest checkpoint with: {self.how_to_resume}")
            raise
        except SuperLinkError as error:
            raise SuperLinkError(f"{error}; go on with: {self.how_to_resume}") from error
        if not outcome:  # it was killed, or never came so far
            status, details = superlink.status(run)
            raise DeployedError(
                f"the run ended as '{status}': {details}; go on with: {self.how_to_resume}", 1
            )
        if outcome["exit"]:
            raise DeployedError(str(outcome["message"]), int(outcome["exit"]))
        return str(outcome["run"])


def configure(scenario: str, overrides: Sequence[str], num_devices: int | None) -> Config:
    """Compose a scenario for deployment, with one client per device.

    Args:
        scenario: As for `fedsim run`.
        overrides: As for `fedsim run`.
        num_devices: How many there are; None: as many as the scenario has clients.

    Raises:
        ConfigError: As `compose`; or the scenario cannot be met by so many devices.
    """
    own = [word for word in overrides if not word.lstrip("+~").startswith("engine.")]
    # A scenario that `--write` wrote is deployed already, and has no groups to choose from.
    engine = [] if is_deployed(compose(scenario, own)) else ["engine=deployment"]
    words = [*engine, EVERY_ROUND, *overrides]
    config = compose(scenario, words)
    if not is_deployed(config):
        raise ConfigError("engine: fedsim deploy runs on engine=deployment alone; leave it out")
    if num_devices is None:
        return config
    partition, participation = config.values["partition"], config.values["participation"]
    fitted = []
    if partition.get("num_clients") not in (None, num_devices):
        fitted.append(f"partition.num_clients={num_devices}")
    if isinstance(asked := participation.get("clients_per_round"), int) and asked > num_devices:
        fitted.append(f"participation.clients_per_round={num_devices}")
    for word in fitted:
        key = word.partition("=")[0]
        if any(typed.lstrip("+").startswith(f"{key}=") for typed in overrides):
            raise ConfigError(
                f"{key}: there are {num_devices} devices; set {word}, or leave it out"
            )
        log.warning("%s, for %d devices", word, num_devices)
    return compose(scenario, [*words, *fitted]) if fitted else config


def is_deployed(config: Config) -> bool:
    """Whether a run is one of real devices."""
    return bool(config.values["engine"]["_target_"] == ENGINE)


def run_locally(sitting: Sitting, num_nodes: int, *, secure: bool, display: Display) -> None:
    """Run a sitting, whose folder is on this machine, on a deployment of its own on loopback.

    Whatever happens, no process is left behind.
    """
    place = Path(sitting.folder) / "deployment"
    with _interruptible(), LocalDeployment(place, num_nodes, secure=secure) as deployment:
        sitting.on(deployment.superlink, display)


def resumed_config(folder: RunFolder) -> Config:
    """Return the configuration of a deployed run.

    Raises:
        ResumeError: It was not deployed.
    """
    config = folder.config()
    if not is_deployed(config):
        raise ResumeError(
            f"{folder.path} was not deployed; go on with: fedsim resume {folder.path}"
        )
    return config


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a request to end this process interrupt it, so that it can end what it has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
