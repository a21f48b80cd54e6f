"""The loop of a sweep: starts points while there is room, follows them, and keeps the records.

Also what is settled before it: which points there are, and which have been run already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fedsim.config import Config
from fedsim.errors import ConfigError, ResumeError
from fedsim.results import candidates
from fedsim.sweep import folder as states
from fedsim.sweep.folder import DONE, Entry, SweepFolder
from fedsim.sweep.grid import Point, check
from fedsim.sweep.outcome import Watch, read_json, read_outcome
from fedsim.sweep.point import INTERRUPTED, Job
from fedsim.sweep.processes import Pool
from fedsim.sweep.table import Display, Row

LOOK_S, SHOW_S = 0.05, 0.3
"""How often it is asked whether a point has ended, and how often the figures are read."""

_STATUS = {0: states.FINISHED, 3: states.BUDGET, INTERRUPTED: states.INTERRUPTED}
"""Exit code of a point's process -> what has become of the point; all others have failed."""


def plan(points: Sequence[Point]) -> tuple[list[Entry], list[Config], int]:
    """Check all points; points of equal configuration are one.

    Returns:
        What is to be written down, the configurations, and how many points were left out as equal.

    Raises:
        ConfigError: A point is wrong; the message names it.
    """
    entries: dict[str, Entry] = {}
    configs: dict[str, Config] = {}
    for point, config in zip(points, check(points), strict=True):
        if config.hash not in entries:
            configs[config.hash] = config
            entries[config.hash] = Entry(
                number=len(entries) + 1,
                point=point,
                hash=config.hash,
                name=config.settings.name,
                rounds=config.settings.rounds,
            )
    return list(entries.values()), list(configs.values()), len(points) - len(entries)


def place(configs: Sequence[Config], name: str | None) -> tuple[Path, str]:
    """Return the folder of all sweeps, beside that of the runs, and the name of this one.

    Raises:
        ConfigError: The name would not do for a folder.
    """
    root = Path(configs[0].settings.output.root).parent / "sweeps"
    names = list(dict.fromkeys(config.settings.name for config in configs))
    name = name or "+".join(names)[:100]
    if name != Path(name).name or name.startswith(".") or "\0" in name:
        raise ConfigError(f"--name {name!r} is not allowed; expected a word such as 'first_sweep'")
    return root, name


def run_before(folder: SweepFolder) -> dict[str, tuple[Path, Entry, str]]:
    """Return what earlier sweeps of the same name have run: hash -> (run, its entry, sweep)."""
    known: dict[str, tuple[Path, Entry, str]] = {}
    for path in sorted(folder.path.parent.glob("*_*")):
        if path == folder.path or path.name.startswith("."):
            continue
        with contextlib.suppress(ResumeError):  # a damaged one has nothing to give
            other = SweepFolder.open(path)
            for entry in other.entries:
                run = other.run_of(entry)
                if entry.status in DONE and run is not None and (run / "summary.json").is_file():
                    known[entry.hash] = run, entry, path.name
    return known


def take_over(folder: SweepFolder) -> int:
    """Take over, from earlier sweeps of the same name, points that have been run already.

    That is what lets a grid grow: more seeds, more values. Returns how many were taken over.
    """
    known = run_before(folder)
    count = 0
    for entry in list(folder.entries):
        if entry.status == states.PLANNED and entry.hash in known:
            run, of, sweep = known[entry.hash]
            where = folder.relative(run)
            folder.record(entry.number, of.status, run=where, reason=of.reason, taken_from=sweep)
            count += 1
    return count


def check_unchanged(folder: SweepFolder) -> list[Config]:
    """Check that every point is still what it was when the sweep began.

    Raises:
        ResumeError: A scenario, or a part of one, was changed since.
        ConfigError: A point is wrong by now.
    """
    configs = check([entry.point for entry in folder.entries])
    for entry, config in zip(folder.entries, configs, strict=True):
        if config.hash != entry.hash:
            raise ResumeError(
                f"{folder.path}: scenario {entry.point.scenario!r} was changed since the sweep "
                f"began: point {entry.number} ({entry.point.label}) would be another run now. To "
                "sweep over it as it is now, type the whole command again"
            )
    return configs


def run_sweep(
    folder: SweepFolder, configs: Sequence[Config], pool: Pool, display: Display
) -> list[Row]:
    """Run what is left of a sweep, whose lock is held; return all points as they stand then.

    The first Ctrl-C lets the points that run finish their round and save it; the second ends them
    at once, and then raises `KeyboardInterrupt`.
    """
    return Loop(folder, configs, pool, display).run()


class Loop:
    """The loop over the points of a folder; a search is one that adds points as it goes on."""

    over: tuple[str, ...] = DONE
    """What a point must have come to for nothing more to be done about it."""

    def __init__(
        self, folder: SweepFolder, configs: Sequence[Config], pool: Pool, display: Display
    ) -> None:
        self.folder, self.pool, self.display = folder, pool, display
        self.configs = {entry.number: c for entry, c in zip(folder.entries, configs, strict=True)}
        self.rows = {entry.number: Row(entry) for entry in folder.entries}
        self.running: dict[int, Watch] = {}
        self.waiting: deque[int] = deque()

    def refill(self) -> None:
        """Add points that can only be known by now; a grid has none."""

    def rule(self, entry: Entry) -> str:
        """Return by what rule a point is to stop itself; see `fedsim.sweep.pruning`."""
        return ""

    def settled(self, row: Row) -> None:
        """Take note of a point that has ended."""

    def run(self) -> list[Row]:
        """Run all that is left; see `run_sweep`."""
        for number, row in self.rows.items():
            self.as_found(row)
            if row.entry.status not in self.over:
                self.waiting.append(number)
        shown = 0.0
        with _Interrupts(self.folder.stop_file) as interrupts, self.pool, self.display:
            while True:
                if not interrupts.asked:
                    self.refill()
                if not (self.running or (self.waiting and not interrupts.asked)):
                    break
                while self.waiting and len(self.running) < self.pool.slots and not interrupts.asked:
                    self._start(self.waiting.popleft())
                for number, code, reason in self.pool.ended():
                    self._ended(number, code, reason)
                if interrupts.asked > 1:
                    raise KeyboardInterrupt
                if time.monotonic() - shown >= SHOW_S:
                    for number in self.running:
                        self._follow(number)
                    self.display.tick(self._all())
                    shown = time.monotonic()
                time.sleep(LOOK_S)
            self.display.tick(self._all())
        return self._all()

    def _all(self) -> list[Row]:
        return list(self.rows.values())

    def as_found(self, row: Row) -> None:
        """Read what an earlier sitting left of a point; a kill may have kept it from saying so."""
        entry, run = row.entry, self.folder.run_of(row.entry)
        if run is None:
            return
        status = read_json(run / "summary.json").get("status")
        complete = status == "finished" and _reported(run)
        if entry.status in DONE and status is None:  # the run was removed: run it again
            row.entry = self.folder.record(entry.number, states.AGAIN)
        elif entry.status not in DONE and complete:
            row.entry = self.folder.record(entry.number, states.FINISHED)
        self._figures(row, Watch(run))

    def _start(self, number: int) -> None:
        row = self.rows[number]
        entry, run = row.entry, self.folder.run_of(row.entry)
        run = run or self._free(self.configs[number])
        where = self.folder.relative(run)
        row.entry = self.folder.record(number, states.STARTED, run=where)
        self.running[number] = Watch(run)
        job = Job(
            scenario=entry.point.scenario,
            overrides=entry.point.overrides,
            hash=entry.hash,
            run=str(run),
            stop=str(self.folder.stop_file),
            rule=self.rule(entry),
        )
        self.pool.start(number, job, self.folder.log_of(entry))
        self.display.changed(row, self._all())

    def _free(self, config: Config) -> Path:
        """Return a run folder that does not exist, nor is meant for another point."""
        runs = [self.folder.run_of(row.entry) for row in self.rows.values()]
        taken = {os.path.abspath(run) for run in runs if run is not None}
        for path in candidates(config):
            if not path.exists() and os.path.abspath(path) not in taken:
                return path
        raise ConfigError(f"output.root: too many runs in {config.settings.output.root}")

    def _ended(self, number: int, code: int, reason: str) -> None:
        row = self.rows[number]
        status = _STATUS.get(code, states.FAILED)
        pruned = self.folder.prune_file(row.entry)
        if status == states.INTERRUPTED and pruned.is_file():
            status, reason = states.PRUNED, pruned.read_text(encoding="utf-8")
        row.entry = self.folder.record(number, status, reason=reason)
        self._follow(number)
        del self.running[number]
        self.settled(row)
        self.display.changed(row, self._all())

    def _follow(self, number: int) -> None:
        self._figures(self.rows[number], self.running[number])

    def _figures(self, row: Row, watch: Watch) -> None:
        watch.poll()
        row.server_round, row.name = watch.server_round, watch.name
        row.value, row.epsilon = watch.value, watch.epsilon
        run = self.folder.run_of(row.entry)
        if row.entry.status in DONE and run is not None:
            row.epsilon = read_outcome(
                run
            ).epsilon  # what it cost in all, not what was spent so far


def _reported(run: Path) -> bool:
    """Return whether a run's report is of its end, and not of an earlier sitting."""
    report, end = run / "report.html", run / "summary.json"
    return report.is_file() and report.stat().st_mtime_ns >= end.stat().st_mtime_ns


class _Interrupts:
    """Counts Ctrl-C; the first one asks the points to stop."""

    def __init__(self, stop_file: Path) -> None:
        self.asked = 0
        self._stop_file = stop_file

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self._stop_file.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked == 1:
            self._stop_file.touch()
            # Not `print`: a handler may run in the middle of another write to the same stream.
            os.write(2, b"\nstopping: points finish their round; press Ctrl-C again to kill them\n")
