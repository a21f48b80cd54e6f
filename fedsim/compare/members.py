"""Which runs are compared, what tells them from each other, and which differ in their seed alone.

Runs may come from anywhere: their configurations are laid beside each other, key by key. Runs that
differ in nothing but their seed are one setting, as in a sweep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.catalog import GROUPS
from fedsim.errors import ConfigError, ResumeError
from fedsim.report.run_folder import RunData
from fedsim.results import CONFIG
from fedsim.sweep.folder import FINISHED, INTERRUPTED, SWEEP, Entry, SweepFolder
from fedsim.sweep.grid import SEED, Point
from fedsim.sweep.outcome import read_outcome
from fedsim.sweep.settings import Setting, SweepRun, settings_of

_APART = ("output", "checkpoint", "plugins", "name", "device")
"""Keys that leave the result alone, or that only name it."""

_DONE = {"finished": FINISHED, "budget": "budget"}
_LONGEST = 4
"""Keys in a setting's short name, beyond which it is the number alone that tells them apart."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run: what a report reads of it, and what a sweep does."""

    data: RunData
    run: SweepRun


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: Short, and its own: what the pictures call it.
        setting: The same as in a sweep.
        members: The runs, by seed.
    """

    name: str
    setting: Setting
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is compared.

    Attributes:
        groups: In the order in which their first run was given.
        diff: key -> value in each group (None where a group lacks the key); only where they differ.
        skipped: Points of sweeps that have no run yet, or failed.
    """

    groups: tuple[Group, ...]
    diff: dict[str, list[str | None]]
    skipped: int

    @property
    def members(self) -> list[Member]:
        """All runs."""
        return [member for group in self.groups for member in group.members]


def run_folders(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the run folders behind run and sweep folders, each once; and how many are missing.

    Raises:
        ResumeError: One of them is neither.
    """
    found: dict[Path, Path] = {}
    skipped = 0
    for path in paths:
        if (path / SWEEP).is_file():
            folder = SweepFolder.open(path)
            runs = [folder.run_of(entry) for entry in folder.entries]
            there = [run for run in runs if run is not None and (run / CONFIG).is_file()]
            skipped += len(runs) - len(there)
        elif (path / CONFIG).is_file():
            there = [path]
        else:
            raise ResumeError(
                f"{path} is neither a run folder (it has no {CONFIG}) nor a sweep's; these are in "
                "results/runs/<scenario>/ and results/sweeps/<name>/."
            )
        for run in there:
            found.setdefault(run.resolve(), run)
    return list(found.values()), skipped


def compare(paths: Sequence[Path]) -> Comparison:
    """Read runs and sweeps, and put together what differs in the seed alone.

    Raises:
        ResumeError: A folder is neither a run's nor a sweep's.
        ConfigError: There is nothing to compare.
    """
    folders, skipped = run_folders(paths)
    if not folders:
        raise ConfigError("none of these sweeps has run a point yet; there is nothing to compare")
    datas = [RunData.read(folder) for folder in folders]
    flats = [flat(data.config) for data in datas]
    keys = list(dict.fromkeys(key for each in flats for key in each))
    differ = [key for key in keys if len({each.get(key) for each in flats}) > 1]
    members = []
    for number, (data, each) in enumerate(zip(datas, flats, strict=True), start=1):
        axes = {key: each[key] for key in differ if key in each}
        outcome = read_outcome(data.path)
        status = _DONE.get(outcome.status, INTERRUPTED)
        # What goes on still counts with what it has measured so far.
        entry = Entry(
            number=number,
            point=Point(scenario=data.name, overrides=data.overrides, axes=axes),
            hash="",
            name=data.name,
            rounds=data.planned_rounds or data.rounds.last,
            status=status if status != INTERRUPTED or outcome.name is None else FINISHED,
        )
        run = SweepRun(entry=entry, run=data.path, outcome=outcome)
        members.append(Member(data=data, run=run))
    return _grouped(members, [key for key in differ if key != SEED], skipped)


def _grouped(members: Sequence[Member], differ: Sequence[str], skipped: int) -> Comparison:
    told = _telling(members, differ)
    shown = [
        SweepRun(
            entry=_with_axes(member.run.entry, _axes(member, told)),
            run=member.run.run,
            outcome=member.run.outcome,
        )
        for member in members
    ]
    settings = settings_of(shown)
    groups: dict[tuple[tuple[str, str], ...], list[Member]] = {}
    for member, run in zip(members, shown, strict=True):
        axes = {k: v for k, v in run.entry.point.axes.items() if k != SEED}
        groups.setdefault(tuple(axes.items()), []).append(member)
    names = _names([setting.axes for setting in settings]) or [members[0].data.name]
    made = tuple(
        Group(name=name, setting=setting, members=tuple(group))
        for name, setting, group in zip(names, settings, groups.values(), strict=True)
    )
    firsts = [group.members[0].run.entry.point.axes for group in made]
    diff = {key: [axes.get(key) for axes in firsts] for key in differ}
    return Comparison(
        groups=made,
        diff={key: row for key, row in diff.items() if len(set(row)) > 1},
        skipped=skipped,
    )


def _telling(members: Sequence[Member], differ: Sequence[str]) -> list[str]:
    """Return the keys that settings are told apart by: a part's name stands for all of its keys."""
    targets = [key for key in differ if key.endswith("._target_")]
    groups = {key.partition(".")[0] for key in targets}
    # ... unless two runs share the part, and differ in the key.
    kept = []
    for key in differ:
        group = key.partition(".")[0]
        if key in targets or group not in groups:
            kept.append(key)
            continue
        values: dict[str | None, set[str | None]] = {}
        for member in members:
            axes = member.run.entry.point.axes
            values.setdefault(axes.get(f"{group}._target_"), set()).add(axes.get(key))
        if any(len(found) > 1 for found in values.values()):
            kept.append(key)
    return kept


def _axes(member: Member, told: Sequence[str]) -> dict[str, str]:
    axes = member.run.entry.point.axes
    found = {}
    for key in (*told, SEED):
        if key in axes:
            target = key.endswith("._target_")
            name = key.removesuffix("._target_") if target else key
            found[name] = axes[key].rpartition(".")[2] if target else axes[key]
    return found


def _with_axes(entry: Entry, axes: dict[str, str]) -> Entry:
    point = Point(scenario=entry.point.scenario, overrides=entry.point.overrides, axes=axes)
    return Entry(
        number=entry.number,
        point=point,
        hash=entry.hash,
        name=entry.name,
        rounds=entry.rounds,
        status=entry.status,
    )


def _names(axes: Sequence[Mapping[str, str]]) -> list[str]:
    """Return short names, each once; none if there is nothing to tell apart."""
    if len(axes) == 1:
        return []
    names = []
    for number, each in enumerate(axes, start=1):
        words = [v if k in GROUPS else f"{k.rpartition('.')[2]}={v}" for k, v in each.items()]
        short = " ".join(words[:_LONGEST])
        names.append(short if short and len(words) <= _LONGEST else f"{number}: {short} ...")
    return [f"{i}: {n}" if names.count(n) > 1 else n for i, n in enumerate(names, start=1)]


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration as {dotted key: value as it is typed}, of what decides the result."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        else:
            found[path] = value if isinstance(value, str) else json.dumps(value, default=str)

    walk({k: v for k, v in config.items() if k not in _APART}, "")
    return found
