"""The points of a sweep put together: one setting for all seeds, and which settings are best.

A setting is a point of the grid without its seed. Its utility is the mean of the headline metric
over the seeds that have been run, with the standard deviation of a sample (n - 1). Its epsilon is
the largest of its runs'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.report.measures import lower_is_better
from fedsim.report.round_columns import drawable
from fedsim.sweep.folder import DONE, Entry, SweepFolder
from fedsim.sweep.grid import SEED
from fedsim.sweep.outcome import Epsilon, Outcome, read_outcome


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A point and what its run has come to.

    Attributes:
        entry: What the sweep wrote down.
        run: The run's folder, if there is one.
        outcome: What is in it.
    """

    entry: Entry
    run: Path | None
    outcome: Outcome

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run of it."""
        return self.entry.status in DONE


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A point of the grid, over all of its seeds.

    Attributes:
        axes: What tells it from other settings; without the seed.
        metric: The headline metric of its runs.
        runs: Those that are done, by seed.
        planned: How many seeds the grid asks for.
        left_out: Runs that are done, and whose metric is not a finite number.
        value_S: The metric of the others, `[S]`.
        epsilon: None where a run has none, or where runs have different terms.
    """

    axes: dict[str, str]
    metric: str
    runs: tuple[SweepRun, ...]
    planned: int
    left_out: int
    value_S: np.ndarray
    epsilon: Epsilon | None

    @property
    def label(self) -> str:
        """What tells it from other settings."""
        return " ".join(f"{key}={value}" for key, value in self.axes.items())

    @property
    def mean(self) -> float:
        """Over seeds; NaN where there is none."""
        return float(self.value_S.mean()) if len(self.value_S) else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; NaN for fewer than two."""
        return float(self.value_S.std(ddof=1)) if len(self.value_S) > 1 else math.nan


def read_runs(folder: SweepFolder) -> list[SweepRun]:
    """Return all points, with what their runs have come to so far."""
    found = []
    for entry in folder.entries:
        run = folder.run_of(entry)
        outcome = read_outcome(run) if run is not None and run.is_dir() else Outcome()
        found.append(SweepRun(entry=entry, run=run, outcome=outcome))
    return found


def settings_of(runs: Sequence[SweepRun]) -> list[Setting]:
    """Put runs together that differ in their seed alone; settings without results come, too."""
    groups: dict[tuple[tuple[str, str], ...], list[SweepRun]] = {}
    for run in runs:
        axes = tuple((key, v) for key, v in run.entry.point.axes.items() if key != SEED)
        groups.setdefault(axes, []).append(run)
    return [_setting(dict(axes), group) for axes, group in groups.items()]


def _setting(axes: dict[str, str], group: Sequence[SweepRun]) -> Setting:
    measured = [run for run in group if run.done and run.outcome.name is not None]
    # One headline metric for a setting: seeds of one configuration measure the same things.
    metric = measured[0].outcome.name or "" if measured else ""
    runs = [run for run in measured if run.outcome.name == metric]
    value_S = np.array([run.outcome.value for run in runs], np.float64)
    good = drawable(value_S)
    return Setting(
        axes=axes,
        metric=metric,
        runs=tuple(runs),
        planned=len(group),
        left_out=int((~good).sum()),
        value_S=value_S[good],
        epsilon=_largest([run.outcome.epsilon for run in runs]),
    )


def _largest(epsilons: Sequence[Epsilon | None]) -> Epsilon | None:
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    if not known or len(known) < len(epsilons) or len({e.kind for e in known}) > 1:
        return None
    return max(known, key=lambda epsilon: epsilon.value)


def by_meaning(settings: Sequence[Setting]) -> dict[tuple[tuple[str, str], ...], list[Setting]]:
    """Sort settings by what their epsilon promises: only epsilons of one kind can be compared."""
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for setting in settings:
        if setting.epsilon is not None and len(setting.value_S):
            groups.setdefault(setting.epsilon.kind, []).append(setting)
    return groups


def pareto(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that no other one beats, by epsilon; all of one metric and meaning.

    One beats another if it is no worse in both epsilon and mean utility, and better in one.
    """

    def worth(setting: Setting) -> float:
        return -setting.mean if lower_is_better(setting.metric) else setting.mean

    def cost(setting: Setting) -> float:
        return setting.epsilon.value if setting.epsilon else math.inf

    front: list[Setting] = []
    for setting in sorted(settings, key=lambda s: (cost(s), -worth(s))):
        if not len(setting.value_S):
            continue
        if not front or worth(setting) > worth(front[-1]):
            front.append(setting)
        elif worth(setting) == worth(front[-1]) and cost(setting) == cost(front[-1]):
            front.append(setting)
    return front


def best(settings: Sequence[Setting], metric: str) -> Setting | None:
    """Return the setting with the best mean of a metric."""
    able = [s for s in settings if s.metric == metric and len(s.value_S)]
    if not able:
        return None
    return (min if lower_is_better(metric) else max)(able, key=lambda s: s.mean)
