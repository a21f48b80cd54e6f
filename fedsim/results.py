"""The run folder: everything that a run leaves behind, and all that resuming it reads.

results/runs/<scenario>/<time>_<hash>/
config.yaml  overrides.txt  env.json  partition.json  privacy.json     written at the start
metrics.jsonl   one line per round
ledger.jsonl    one line per private release; see fedsim.protection.ledger
checkpoint/     see fedsim.checkpoint; covers all of the above from the start
log.txt         warnings, rejected replies, tracebacks
model.safetensors  summary.json  report.html                           written at the end
findings.json   of a run of questions: tables and pictures of what was found, written at the end
graph.json      with devices, and not too large: the topology's nodes, and its links with the bytes
                that each has carried, sent again ones included; written at the end
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedsim import checkpoint
from fedsim.checkpoint import Checkpoint
from fedsim.config import Config
from fedsim.errors import ConfigError, ResumeError
from fedsim.files import sha256, write_atomic
from fedsim.protection.ledger import LEDGER
from fedsim.records import Params
from fedsim.rounds import RoundReport
from fedsim.strategy import State

CONFIG, OVERRIDES, METRICS = "config.yaml", "overrides.txt", "metrics.jsonl"
MODEL, SUMMARY = "model.safetensors", "summary.json"
FINDINGS, GRAPH = "findings.json", "graph.json"
STATIC = (CONFIG, OVERRIDES, "env.json", "partition.json", "privacy.json")
"""Files written before the first round; a checkpoint covers each of them."""

MAX_DIFF = 100_000
"""How much of a checkout's changes is kept with a run, in characters."""
SMOKE = "--smoke"
"""The line of `overrides.txt` that marks a run which was cut down and cannot be resumed."""

_METRICS = ("train", "clients", "central", "diagnostics")
PACKAGES = (
    "flwr",
    "torch",
    "opacus",
    "numpy",
    "scipy",
    "networkx",
    "hydra-core",
    "omegaconf",
    "dp-accounting",
)


class RunFolder:
    """One run's folder.

    The digests that go into a checkpoint are those of what this process wrote or checked, not of
    what the files hold by then, so that no later change of a file can pass for the run's own.

    Args:
        path: An existing folder; use `create` or `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._covers: dict[str, str] = {}
        self._metrics = hashlib.sha256()
        self._metrics_bytes = 0

    @classmethod
    def create(cls, config: Config, *, smoke: bool = False, at: Path | None = None) -> RunFolder:
        """Make a new folder under the scenario's `output.root` and write the configuration.

        Args:
            config: Of the run.
            smoke: Mark the run as cut down; see `fedsim.smoke.Smoke`.
            at: The folder itself, one of `candidates`, written down before it is made; it may be
                there already, if nothing has run in it.

        Raises:
            ConfigError: It cannot be made there.
        """
        root = Path(config.settings.output.root) / config.settings.name
        for path in candidates(config) if at is None else [at]:
            try:
                path.mkdir(parents=True, exist_ok=at is not None)
                break
            except FileExistsError:
                if not path.is_dir():
                    raise ConfigError(_not_writable(root, "a file is in the way")) from None
            except OSError as error:
                raise ConfigError(_not_writable(root, str(error.strerror))) from error
        else:
            raise ConfigError(_not_writable(root, f"{path.name} and 999 more exist"))
        folder = cls(path)
        folder._write(CONFIG, config.to_yaml())
        lines = [*config.overrides, SMOKE] if smoke else config.overrides
        folder._write(OVERRIDES, "".join(f"{line}\n" for line in lines))
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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running this run; ends with the process, however that ends.

        Raises:
            ResumeError: Another process is at it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResumeError(
                    f"{self.path}: the run is still going on, in another process; stop that first"
                ) from error
            except OSError:
                pass  # a file system without locks
            yield

    def write_start(
        self,
        *,
        environment: Mapping[str, Any],
        partition: Mapping[str, Any],
        privacy: Mapping[str, Any],
    ) -> None:
        """Write what is known before the first round."""
        self._write("env.json", _json(environment))
        self._write("partition.json", _json(partition))
        self._write("privacy.json", _json(privacy))
        write_atomic(self.path / METRICS, b"")

    def append(self, report: RoundReport) -> None:
        """Append one round to the metrics, in one write."""
        line = f"{json_line(report)}\n".encode()
        with (self.path / METRICS).open("ab") as file:
            file.write(line)
        self._metrics.update(line)
        self._metrics_bytes += len(line)

    def rounds(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the metrics."""
        with (self.path / METRICS).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def save_checkpoint(
        self,
        server_round: int,
        last_round: int,
        params: Params,
        state: State,
        keep: int,
        ledger: str,
    ) -> None:
        """Save the run's state after a round; `ledger` is the chain of the ledger's last line."""
        with (self.path / METRICS).open("rb") as file:
            os.fsync(file.fileno())
        saved = Checkpoint(
            server_round=server_round,
            last_round=last_round,
            params=params,
            state=state,
            covers={**self._covers, METRICS: self._metrics.hexdigest(), LEDGER: ledger},
            metrics_bytes=self._metrics_bytes,
        )
        checkpoint.save(self.path / "checkpoint", saved, keep)

    def load_checkpoint(self) -> Checkpoint | None:
        """Load the latest checkpoint, and cut the metrics back to it.

        Returns None where the run was stopped while it was being set up; it then starts afresh.

        Raises:
            ResumeError: A file that the checkpoint covers is missing or damaged; says which. Or the
                run was a smoke run.
        """
        saved = checkpoint.load_latest(self.path / "checkpoint")
        read = STATIC if saved else (CONFIG, OVERRIDES)
        self._covers = {name: sha256(self._read(name)) for name in read}
        for name in read if saved else ():
            if saved and self._covers[name] != saved.covers.get(name):
                raise ResumeError(
                    f"{self.path / name} is not what the run wrote. A run is resumed with the "
                    "configuration that it was started with, or not at all; start a new one with "
                    f"fedsim run scenario={self.path / CONFIG}"
                )
        if SMOKE in self._read(OVERRIDES).decode(errors="replace").splitlines():
            raise ResumeError(
                f"{self.path} is a smoke run: one round of a few clients, nothing to go on with; "
                f"for all of it: fedsim run scenario={self.path / CONFIG}"
            )
        for leftover in self.path.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        checkpoint.sweep(self.path / "checkpoint")
        if saved is not None:
            self._cut_metrics(saved)
        return saved

    def _cut_metrics(self, saved: Checkpoint) -> None:
        metrics = self._read(METRICS)
        kept = metrics[: saved.metrics_bytes]
        self._metrics, self._metrics_bytes = hashlib.sha256(kept), len(kept)
        if self._metrics.hexdigest() != saved.covers.get(METRICS):
            raise ResumeError(
                f"{self.path / METRICS} is damaged before round {saved.server_round}. To go back "
                "to the checkpoint before it, remove the newest folder in "
                f"{self.path / 'checkpoint'} and resume again."
            )
        if len(kept) < len(metrics):
            write_atomic(self.path / METRICS, kept)

    @property
    def ended(self) -> bool:
        """Whether the run's end, or the end of its last sitting, was written."""
        return (self.path / MODEL).is_file() and (self.path / SUMMARY).is_file()

    def reopen(self) -> None:
        """Remove the summary of an earlier sitting: the run goes on."""
        (self.path / SUMMARY).unlink(missing_ok=True)

    def write_end(self, params: Params, summary: Mapping[str, Any]) -> None:
        """Write the final model and the summary, with the latest of each group of metrics."""
        write_atomic(self.path / MODEL, checkpoint.encode(params))
        latest: dict[str, Any] = {}
        seconds = 0.0
        for line in self.rounds():
            latest |= {group: line[group] for group in _METRICS if line.get(group)}
            seconds += line["seconds"]
        self._write(SUMMARY, _json({**summary, "seconds": seconds, "metrics": latest}))

    def write_findings(self, findings: Mapping[str, Any]) -> None:
        """Write what a run of questions has found."""
        self._write(FINDINGS, _json(findings))

    def write_graph(self, graph: Mapping[str, Any]) -> None:
        """Write the topology and its traffic; see `fedsim.network`."""
        self._write(GRAPH, _json(graph))

    def config(self) -> Config:
        """Return the configuration that the run was started with.

        Raises:
            ResumeError: It is damaged, or no longer valid.
        """
        path = self.path / CONFIG
        try:
            return Config.from_yaml(self._read(CONFIG).decode(errors="replace"), str(path))
        except ConfigError as error:
            raise ResumeError(f"{path} is damaged, or no longer valid: {error}") from error

    def _write(self, name: str, text: str) -> None:
        data = text.encode()
        write_atomic(self.path / name, data)
        if name in STATIC:
            self._covers[name] = sha256(data)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ResumeError(f"{self.path / name} cannot be read: {error.strerror}") from error


def candidates(config: Config) -> Iterator[Path]:
    """Yield the paths that a run's folder may have now; the first that is free will do."""
    root = Path(config.settings.output.root) / config.settings.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        suffix = f"-{attempt}" if attempt else ""
        yield root / f"{stamp}_{config.hash[:8]}{suffix}"


def json_line(report: RoundReport) -> str:
    """Return a report as one line of JSON; NaN and infinities, which JSON lacks, become null."""
    values = vars(report)  # plain data: `dataclasses.asdict` would copy every list
    try:
        return json.dumps(values, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(values), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    for package in PACKAGES:
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
        "git": checkout(),
    }


def checkout(folder: Path = Path(__file__).parent) -> dict[str, str | bool | list[str]]:
    """Return what the code of this run was, where it is a checkout; else nothing.

    The commit; whether the files differ from it, and how, as `git diff` shows it (the first
    `MAX_DIFF` characters); and the names of the first 100 files that are not tracked. An installed
    package that lies in a checkout of something else is none.
    """

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        answer = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
        return answer.stdout

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")
        diff = ask("diff", "HEAD", "--no-ext-diff", "--no-color")
        new = ask("ls-files", "--others", "--exclude-standard", "--full-name", ":/").splitlines()
        told: dict[str, str | bool | list[str]] = {
            "commit": ask("rev-parse", "HEAD").strip(),
            "changed": bool(diff or new),
            "diff": diff[:MAX_DIFF],
            "untracked": new[:100],
        }
    except (OSError, subprocess.SubprocessError):
        return {}
    told |= {"diff-cut": True} if len(diff) > MAX_DIFF else {}
    told |= {"untracked-cut": True} if len(new) > 100 else {}
    return told


def command_line() -> list[str]:
    """Return this process's command as the user typed it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _not_writable(root: Path, why: str) -> str:
    return f"output.root: a run folder cannot be made in {root} ({why}); set output.root= elsewhere"
