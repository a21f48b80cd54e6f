"""The run folder: everything that a run leaves behind, and all that resuming it reads.

    results/runs/<scenario>/<time>_<hash>/
        config.yaml  overrides.txt  env.json  partition.json  privacy.json     written at the start
        metrics.jsonl   one line per round
        checkpoint/     see fedsim.checkpoint
        log.txt         warnings, rejected replies
        model.safetensors  summary.json  report.html                           written at the end
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from fedsim import checkpoint
from fedsim.checkpoint import Checkpoint
from fedsim.config import Config
from fedsim.errors import ConfigError, ResumeError
from fedsim.files import sha256, write_atomic
from fedsim.records import Params
from fedsim.rounds import RoundReport
from fedsim.strategy import State

CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
STATIC = (CONFIG, "overrides.txt", "env.json", "partition.json", "privacy.json")
"""Files written before the first round; a checkpoint covers each of them."""

_PACKAGES = ("flwr", "torch", "opacus", "numpy", "scipy", "networkx", "hydra-core", "omegaconf")


class RunFolder:
    """One run's folder.

    Args:
        path: An existing folder; use `create` or `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make a new folder under the scenario's `output.root` and write the configuration.

        Raises:
            ConfigError: It cannot be made there.
        """
        root = Path(config.settings.output.root) / config.settings.name
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1000):
            suffix = f"-{attempt}" if attempt else ""
            path = root / f"{stamp}_{config.hash[:8]}{suffix}"
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                if not path.is_dir():
                    raise ConfigError(_not_writable(root, "a file is in the way")) from None
            except OSError as error:
                raise ConfigError(_not_writable(root, str(error.strerror))) from error
        folder = cls(path)
        folder._write(CONFIG, config.to_yaml())
        folder._write("overrides.txt", "".join(f"{line}\n" for line in config.overrides))
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing folder.

        Raises:
            ResumeError: It is not a run folder.
        """
        if not (path / CONFIG).is_file():
            raise ResumeError(
                f"{path} is not a run folder: it has no {CONFIG}. "
                "Run folders are under results/runs/<scenario>/."
            )
        return cls(path)

    def write_start(
        self, *, environment: Mapping[str, Any], partition: Mapping[str, Any], privacy: str
    ) -> None:
        """Write what is known before the first round."""
        self._write("env.json", _json(environment))
        self._write("partition.json", _json(partition))
        self._write("privacy.json", _json({"statement": privacy}))

    def append(self, report: RoundReport) -> None:
        """Append one round to the metrics, in one write."""
        line = json.dumps(dataclasses.asdict(report), allow_nan=True) + "\n"
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the lines of the metrics."""
        text = (self.path / METRICS).read_text("utf-8") if (self.path / METRICS).exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def save_checkpoint(self, server_round: int, params: Params, state: State, keep: int) -> None:
        """Save the run's state after a round."""
        metrics = self._read(METRICS)
        with (self.path / METRICS).open("rb") as file:
            os.fsync(file.fileno())
        covers = {name: sha256(self._read(name)) for name in STATIC}
        saved = Checkpoint(
            server_round=server_round,
            params=params,
            state=state,
            covers={**covers, METRICS: sha256(metrics)},
            metrics_bytes=len(metrics),
        )
        checkpoint.save(self.path / "checkpoint", saved, keep)

    def load_checkpoint(self) -> Checkpoint | None:
        """Load the latest checkpoint, and cut the metrics back to it.

        Returns None where the run was stopped before its first checkpoint; it then starts afresh.

        Raises:
            ResumeError: A file that the checkpoint covers is missing or damaged; says which.
        """
        saved = checkpoint.load_latest(self.path / "checkpoint")
        if saved is None:
            (self.path / METRICS).unlink(missing_ok=True)
            return None
        for name in STATIC:
            if sha256(self._read(name)) != saved.covers[name]:
                raise ResumeError(
                    f"{self.path / name} is not what the run wrote. A run is resumed with the "
                    "configuration that it was started with, or not at all; start a new one with "
                    f"fedsim run scenario={self.path / CONFIG}"
                )
        metrics = self._read(METRICS)[: saved.metrics_bytes]
        if len(metrics) < saved.metrics_bytes or sha256(metrics) != saved.covers[METRICS]:
            raise ResumeError(
                f"{self.path / METRICS} is damaged before round {saved.server_round}. To go back "
                "to the checkpoint before it, remove the newest folder in "
                f"{self.path / 'checkpoint'} and resume again."
            )
        write_atomic(self.path / METRICS, metrics)
        return saved

    def write_end(self, params: Params, summary: Mapping[str, Any]) -> None:
        """Write the final model and the summary."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in params.items()}
        write_atomic(self.path / "model.safetensors", save_tensors(tensors))
        self._write(SUMMARY, _json(summary))

    def config(self) -> Config:
        """Return the configuration that the run was started with."""
        return Config.from_yaml(self._read(CONFIG).decode(errors="replace"), str(self.path / CONFIG))

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.path / name, text.encode())

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ResumeError(f"{self.path / name} cannot be read: {error.strerror}") from error


def check_unchanged(started: Config, asked: Config) -> None:
    """Check that a run is resumed with the configuration that it was started with.

    Raises:
        ResumeError: It differs; the message holds the difference.
    """
    if started.hash == asked.hash:
        return
    lines = difflib.unified_diff(
        started.to_yaml().splitlines()[2:],
        asked.to_yaml().splitlines()[2:],
        "as started",
        "as asked for now",
        lineterm="",
        n=0,
    )
    raise ResumeError(
        "a run is resumed with the configuration that it was started with; this differs:\n"
        + "\n".join(lines)
        + "\nTo run longer, use --extend rounds=N; for anything else, start a new run."
    )


def environment(device: torch.device, seed: int, command: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, machine, code, command."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": list(command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "git": _git(),
    }


def _git() -> dict[str, str | bool]:
    """Return the commit of fedsim's own checkout and whether it has changes, if it is one."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        return answer.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def command_line() -> list[str]:
    """Return this process's command as the user typed it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _not_writable(root: Path, why: str) -> str:
    return f"output.root: a run folder cannot be made in {root} ({why}); set output.root= elsewhere"
