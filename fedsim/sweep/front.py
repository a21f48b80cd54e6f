"""`fedsim sweep`, from the words to the exit code."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results import SUMMARY, command_line
from fedsim.sweep import folder as states
from fedsim.sweep import grid, runner
from fedsim.sweep.folder import DONE, SweepFolder, digest_of
from fedsim.sweep.outcome import read_json
from fedsim.sweep.processes import Pool, processes
from fedsim.sweep.report import write_sweep_report
from fedsim.sweep.table import Row, as_json, display, settings_lines


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The options of the command; see `fedsim sweep --help`."""

    jobs: int | None = None
    ray: str | None = None
    name: str | None = None
    fresh: bool = False
    as_json: bool = False
    search: int | None = None
    metric: str | None = None
    warmup: int | None = None
    sampler_seed: int | None = None


def sweep(words: Sequence[str], resume: Path | None, choice: Choice) -> int:
    """Run a sweep, or what is left of it; return the exit code.

    Raises:
        ConfigError: Something is wrong with the command, or with one of the points.
        ResumeError: The sweep's folder is damaged, in use, or of a scenario that was changed.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    only = {"--metric": choice.metric, "--warmup": choice.warmup, "--seed": choice.sampler_seed}
    given = [option for option, value in only.items() if value is not None]
    if given and (choice.search is None or resume is not None):
        raise ConfigError(f"{given[0]} says how to begin a search; it goes with --search N alone")
    if choice.search is not None and resume is None:
        folder, configs = _new_search(words, choice)
    else:
        folder, configs = _new(words, choice) if resume is None else _old(words, resume, choice)
    head = folder.head().get("search")
    if choice.search is not None and head is None:
        raise ConfigError(f"{resume} is a sweep over a grid, not a search; leave --search out")
    with ExitStack() as stack:
        lock = stack.enter_context(folder.lock())
        if resume is None and not choice.fresh and head is None:
            taken = runner.take_over(folder)
            _say(choice, f"{taken} points were run by an earlier sweep" if taken else "")
        points = len(folder.entries)
        loop = None
        if head is not None:
            from fedsim.sweep import search

            what = search.reopen(folder, choice.search)
            points = what.trials
        pool = _pool(choice, lock, points)
        shown = display(as_json=choice.as_json)
        if head is not None:
            known = {} if choice.fresh else runner.run_before(folder)
            loop = search.SearchLoop(folder, configs, pool, shown, what, known)
        _say(choice, f"{points} points, {pool.slots} at once: {folder.path}")
        try:
            rows = loop.run() if loop else runner.run_sweep(folder, configs, pool, shown)
        except KeyboardInterrupt as error:
            error.add_note(f"go on with: {_again(folder)}")
            raise
        report = write_sweep_report(folder.path)
    return _tell(folder, rows, report, choice)


def _new(words: Sequence[str], choice: Choice) -> tuple[SweepFolder, list[Config]]:
    """Make the folder of a sweep, or find that of the same points."""
    entries, configs, equal = runner.plan(grid.expand(words))
    root, name = runner.place(configs, choice.name)
    if equal:
        _say(choice, f"{equal} points are equal to others, and are run once")
    if not choice.fresh:
        found = SweepFolder.find(root, name, digest_of(entries))
        if found is not None:
            by_hash = {config.hash: config for config in configs}
            return found, [by_hash[entry.hash] for entry in found.entries]
    return SweepFolder.create(root, name, command_line(), entries), configs


def _new_search(words: Sequence[str], choice: Choice) -> tuple[SweepFolder, list[Config]]:
    """Make the folder of a search, or find that of the same one."""
    from fedsim.sweep import search

    asked = search.Search(
        words=tuple(words),
        trials=choice.search or 0,
        metric=choice.metric,
        warmup=choice.warmup,
        sampler_seed=choice.sampler_seed or 0,
    )
    _, corners, head = search.start(words, asked)
    root, name = runner.place(corners, choice.name)
    found = None if choice.fresh else SweepFolder.find(root, name, head["hash"])
    if found is not None:
        return found, runner.check_unchanged(found)
    return SweepFolder.create(root, name, command_line(), [], head), []


def _old(words: Sequence[str], resume: Path, choice: Choice) -> tuple[SweepFolder, list[Config]]:
    given = [*words, *(["--name"] if choice.name else []), *(["--fresh"] if choice.fresh else [])]
    if given:
        raise ConfigError(
            f"--resume goes on with the points that {resume} has; leave {given[0]} out, or type "
            "the whole command without --resume: it goes on with the same points, too"
        )
    folder = SweepFolder.open(resume)
    return folder, runner.check_unchanged(folder)


def _pool(choice: Choice, lock: int, points: int) -> Pool:
    if choice.ray is not None:
        from fedsim.sweep.ray_pool import RayPool

        return RayPool(choice.ray, choice.jobs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return processes(min(choice.jobs or cores or 1, points), lock)


def _tell(folder: SweepFolder, rows: Sequence[Row], report: Path, choice: Choice) -> int:
    """Say how it ended, the failed points last; return the exit code."""
    failed = [row for row in rows if row.entry.status == states.FAILED]
    done = [row for row in rows if row.entry.status in DONE]
    pruned = sum(row.entry.status == states.PRUNED for row in rows)
    told = read_json(folder.path / SUMMARY)
    if choice.as_json:
        end = {
            **told,
            "sweep": str(folder.path),
            "report": str(report),
            "points": len(rows),
            "done": len(done),
            "pruned": pruned,
            "failed": [as_json(row) for row in failed],
        }
        sys.stdout.write(json.dumps(end) + "\n")
    for line in settings_lines(told):
        _say(choice, line)
    more = f", {pruned} pruned" if pruned else ""
    _say(choice, f"{len(done)} of {len(rows)} points done{more}")
    _say(choice, f"report:  {report}")
    stopped = len(done) + len(failed) + pruned < len(rows)
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {len(rows)} points failed:")
        for row in failed:
            lines.append(f"  {row.entry.number}  {row.entry.point.label}: {row.entry.reason}")
            lines.append(f"     {row.entry.point.command}")
    if stopped or failed:
        lines.append(f"{'stopped; ' if stopped else ''}go on with: {_again(folder)}")
    sys.stdout.flush()
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return 130 if stopped else 1 if failed else 0


def _again(folder: SweepFolder) -> str:
    return f"fedsim sweep --resume {shlex.quote(str(folder.path))}"


def _say(choice: Choice, text: str) -> None:
    if text and not choice.as_json:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
