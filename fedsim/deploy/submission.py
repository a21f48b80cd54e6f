"""A run on a SuperLink: submitted, followed, stopped, through Flower's own command line.

Flower's exit codes are not trusted: `flwr run` answers 0 whatever becomes of the run. The outcome
is what the server app says last (`fedsim.deploy.server_app`), or else what the SuperLink says.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.deploy import server_lines
from fedsim.deploy.commands import environment, program, toml
from fedsim.errors import ConfigError, FedsimError

BUNDLE = Path(__file__).parent / "bundle"
"""What is submitted: an application of nothing but names of what is installed on every node."""

ENDED = "finished:"
"""How the status of a run begins that is over."""


class SuperLinkError(FedsimError):
    """A SuperLink cannot be reached, or refuses what it is asked."""


@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """A SuperLink, as `$FLWR_HOME/config.toml` names it.

    Attributes:
        name: There.
        home: FLWR_HOME; None for the user's own.
    """

    name: str
    home: Path | None = None

    def submit(self, scenario: str, *, folder: str = "", extend: int = 0) -> int:
        """Start a run; return its id.

        Args:
            scenario: The run as one string (`fedsim.engines.recipe`).
            folder: The run's folder on the SuperLink's host; empty for a new one.
            extend: Go on until this round; 0: as planned.

        Raises:
            SuperLinkError: It cannot be started.
        """
        values: dict[str, int | str] = {
            "scenario": scenario,
            "run-folder": folder,
            "extend": extend,
        }
        text = "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "run.toml"
            file.write_text(text, encoding="utf-8")
            told = self._json("run", str(BUNDLE), self.name, "--run-config", str(file))
        return int(told["run-id"])

    def status(self, run: int) -> tuple[str, str]:
        """Return a run's (status, details), e.g. ("finished:failed", "ServerApp failed ...")."""
        told = self._json("ls", self.name, "--run-id", str(run))["runs"][0]
        return str(told["status"]), str(told.get("status-details", ""))

    def stop(self, run: int) -> None:
        """Stop a run; its checkpoints stay."""
        self._json("stop", str(run), self.name)

    def register(self, public_key: Path) -> None:
        """Let a device in."""
        self._json("supernode", "register", str(public_key), self.name)

    def follow(self, run: int) -> Iterator[dict[str, Any]]:
        """Yield what the server app of a run says, until the run is over.

        Raises:
            SuperLinkError: The SuperLink was lost.
        """
        seen = 0
        while True:
            over = self.status(run)[0].startswith(ENDED)
            told = 0
            with self._log(run) as stream:
                for line in stream:
                    said = server_lines.read(line)
                    if said is None:
                        continue
                    told += 1
                    if told > seen:  # a stream that is opened again begins at the beginning
                        yield said
            seen = max(seen, told)
            if over:
                return
            time.sleep(0.5)

    def _log(self, run: int) -> _Lines:
        return _Lines(
            [program("flwr"), "log", str(run), self.name, "--stream"], environment(self.home)
        )

    def _json(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(  # noqa: S603
            [program("flwr"), *words, "--format", "json"],
            env=environment(self.home),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        try:
            told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            told = {}
        if not told.get("success"):
            raise self._error(words[0], str(told.get("error-message") or done.stderr).strip())
        return told

    def _error(self, verb: str, why: str) -> FedsimError:
        lines = [line.strip() for line in why.splitlines() if line.strip()]
        text = " ".join(lines)[:600] or "it did not answer"
        if "not found" in text and "config.toml" in text:
            return ConfigError(
                f"--to {self.name}: $FLWR_HOME/config.toml names no such SuperLink ({text}); "
                "fedsim deploy --write DIR writes one"
            )
        return SuperLinkError(f"SuperLink {self.name} cannot do 'flwr {verb}': {text}")


class _Lines:
    """A process's standard output, line by line; it ends with the block."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def __enter__(self) -> Iterator[str]:
        assert self.process.stdout is not None  # noqa: S101  asked for above
        return iter(self.process.stdout)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
