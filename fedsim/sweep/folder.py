"""The sweep folder: which points there are, and what has become of each, written before it is done.

results/sweeps/<name>/<time>_<hash>/
sweep.yaml     what was typed, and a digest of all points
points.jsonl   one line per event: all points as planned, then each change of one's status
logs/          what each point's process printed
points.csv  summary.json  report.html                                   written at the end

The folder `sweeps` lies beside the scenario's `output.root`; the runs themselves lie where
`fedsim run` would put them. A point's run folder is written down before it is made, so a kill at
any moment loses no point and lets none run twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import ConfigError, ResumeError
from fedsim.files import sha256, sync_folder, write_atomic, write_durable
from fedsim.sweep.grid import Point

SWEEP, POINTS, LOGS, STOP = "sweep.yaml", "points.jsonl", "logs", "stop"

PLANNED, STARTED, FINISHED = "planned", "started", "finished"
BUDGET, FAILED, INTERRUPTED = "budget", "failed", "interrupted"
PRUNED = "pruned"  # a search stopped it, as another point was better; see fedsim.sweep.pruning
AGAIN = "again"  # it was done, but its run folder is gone
DONE = (FINISHED, BUDGET)
"""There is nothing left to run: all rounds, or all that the privacy budget allows."""

_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A point and what has become of it.

    Attributes:
        number: 1, 2, ... in the order of the grid.
        point: What to run.
        hash: Of its configuration.
        name, rounds: Of its scenario.
        status: One of those above.
        run: Its run folder, once it has one; relative to the sweep folder, or absolute.
        reason: Why it failed.
        taken_from: The sweep that ran it, if not this one.
    """

    number: int
    point: Point
    hash: str
    name: str
    rounds: int
    status: str = PLANNED
    run: str | None = None
    reason: str | None = None
    taken_from: str | None = None


class SweepFolder:
    """One sweep's folder.

    Args:
        path: An existing one; use `create`, `find` or `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._lock: int | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        command: Sequence[str],
        entries: Sequence[Entry],
        search: Mapping[str, Any] | None = None,
    ) -> SweepFolder:
        """Make a new folder; it appears with all of its points, or not at all.

        Args:
            root: Of all sweeps.
            name: Of this one.
            command: What was typed.
            entries: The points.
            search: Of a search, whose points come one by one: what is to be found in `sweep.yaml`;
                its `hash` stands for the points.

        Raises:
            ConfigError: It cannot be made there.
        """
        digest = str(search["hash"]) if search else digest_of(entries)
        head = {"name": name, "command": list(command), "hash": digest, "points": len(entries)}
        axes: dict[str, list[str]] = {}
        for entry in entries:
            for key, value in entry.point.axes.items():
                if value not in axes.setdefault(key, []):
                    axes[key].append(value)
        head |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "axes": axes}
        head |= {"search": dict(search)} if search else {}
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}_{digest[:8]}"
        building = root / name / f".building-{stamp}-{os.getpid()}"
        try:
            (building / LOGS).mkdir(parents=True)
            write_durable(building / SWEEP, yaml.safe_dump(head, sort_keys=False).encode())
            lines = "".join(json.dumps(_planned(entry)) + "\n" for entry in entries)
            write_durable(building / POINTS, lines.encode())
            sync_folder(building)
            path = _rename(building, root / name / stamp)
            sync_folder(path.parent)
        except OSError as error:
            raise ConfigError(
                f"a sweep folder cannot be made in {root / name} ({error.strerror}); it lies "
                "beside output.root, so set output.root= elsewhere"
            ) from error
        return cls.open(path)

    @classmethod
    def find(cls, root: Path, name: str, digest: str) -> SweepFolder | None:
        """Return the latest sweep of these very points, if there is one."""
        for path in sorted((root / name).glob(f"*_{digest[:8]}*"), reverse=True):
            if not path.name.startswith(".") and (path / SWEEP).is_file():
                found = cls.open(path)
                head = found.head()
                if (head["hash"] if "search" in head else digest_of(found.entries)) == digest:
                    return found
        return None

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """Open a folder and read what has become of its points.

        Raises:
            ResumeError: It is not a sweep folder, or it is damaged.
        """
        if not (path / SWEEP).is_file():
            raise ResumeError(
                f"{path} is not a sweep folder: it has no {SWEEP}. "
                "Sweep folders are under results/sweeps/<name>/."
            )
        folder = cls(path)
        folder.reload()
        return folder

    def head(self) -> dict[str, Any]:
        """Return what `sweep.yaml` holds.

        Raises:
            ResumeError: It is damaged.
        """
        try:
            content = yaml.safe_load((self.path / SWEEP).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ResumeError(f"{self.path / SWEEP} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise ResumeError(f"{self.path / SWEEP} is damaged: not a mapping")
        return content

    def reload(self) -> None:
        """Read the points again; a last line that a kill has cut short counts for nothing.

        Raises:
            ResumeError: The file is damaged elsewhere.
        """
        path = self.path / POINTS
        found: dict[int, Entry] = {}
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
            for line in lines:
                event = json.loads(line)
                number = event["point"]
                if event["status"] == PLANNED:
                    found[number] = _read_planned(event)
                else:
                    found[number] = _changed(found[number], event)
        except OSError as error:
            raise ResumeError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(
                f"{path} is damaged ({error!r}); type the command of {self.path / SWEEP} again "
                "with --fresh, which starts anew"
            ) from error
        self.entries = list(found.values())

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Keep other processes off this sweep; yields what the points' processes must inherit.

        They hold the lock as long as they live, so after a kill it is free only when all are gone.

        Raises:
            ResumeError: The sweep is still going on.
        """
        with (self.path / ".lock").open("w") as file:
            end = time.monotonic() + _WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise ResumeError(
                            f"{self.path}: the sweep is still going on, in another process; stop "
                            "that first"
                        ) from error
                    time.sleep(0.05)
                except OSError:
                    break  # a file system without locks
            self._cut()
            self.reload()
            self.stop_file.unlink(missing_ok=True)
            yield file.fileno()

    def _cut(self) -> None:
        data = (self.path / POINTS).read_bytes()
        if whole := data[: data.rfind(b"\n") + 1]:
            if len(whole) < len(data):
                write_atomic(self.path / POINTS, whole)

    def record(self, number: int, status: str, **what: str | None) -> Entry:
        """Write down what becomes of a point; it is on the disk when this returns."""
        event = {"point": number, "status": status, **{k: v for k, v in what.items() if v}}
        self._append(event)
        self.entries[number - 1] = _changed(self.entries[number - 1], event)
        return self.entries[number - 1]

    def _append(self, event: Mapping[str, Any]) -> None:
        with (self.path / POINTS).open("ab") as file:
            file.write(f"{json.dumps(event)}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def add(self, entry: Entry) -> Entry:
        """Write down one more point, which has the next number."""
        self._append(_planned(entry))
        self.entries.append(entry)
        return entry

    def run_of(self, entry: Entry) -> Path | None:
        """Return a point's run folder, as a path from here; it may not exist yet."""
        return None if entry.run is None else Path(os.path.normpath(self.path / entry.run))

    def relative(self, run: Path) -> str:
        """Return how a run folder is written down, so that `results/` can be moved as a whole."""
        return os.path.relpath(run, self.path)

    def log_of(self, entry: Entry) -> Path:
        """Return where the process of a point prints to."""
        return self.path / LOGS / f"{entry.number:04d}.txt"

    def prune_file(self, entry: Entry) -> Path:
        """Once this file is there, the point stops after its round; it says why."""
        return self.path / LOGS / f"{entry.number:04d}.pruned"

    @property
    def stop_file(self) -> Path:
        """While this file is there, points stop after their round, with a checkpoint."""
        return self.path / STOP


def digest_of(entries: Sequence[Entry]) -> str:
    """Return what tells one set of points from another, in whatever order they are."""
    return sha256("\n".join(sorted(entry.hash for entry in entries)).encode())


def _rename(building: Path, final: Path) -> Path:
    for attempt in range(1000):
        path = final.with_name(f"{final.name}-{attempt}") if attempt else final
        if not path.exists():
            return building.rename(path)
    raise OSError(0, f"{final.name} and 999 more exist")


def _planned(entry: Entry) -> dict[str, Any]:
    return {
        "point": entry.number,
        "status": PLANNED,
        "hash": entry.hash,
        "name": entry.name,
        "rounds": entry.rounds,
        "scenario": entry.point.scenario,
        "overrides": list(entry.point.overrides),
        "axes": entry.point.axes,
    }


def _read_planned(event: Mapping[str, Any]) -> Entry:
    point = Point(
        scenario=str(event["scenario"]),
        overrides=tuple(map(str, event["overrides"])),
        axes={str(key): str(value) for key, value in event["axes"].items()},
    )
    return Entry(
        number=int(event["point"]),
        point=point,
        hash=str(event["hash"]),
        name=str(event["name"]),
        rounds=int(event["rounds"]),
    )


def _changed(entry: Entry, event: Mapping[str, Any]) -> Entry:
    return replace(
        entry,
        status=str(event["status"]),
        run=event.get("run", entry.run),
        reason=event.get("reason"),
        taken_from=event.get("taken_from", entry.taken_from),
    )
