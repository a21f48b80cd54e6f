"""What a user sees of a run: a live line on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import abc
import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim.results import json_line
from fedsim.rounds import RoundReport


class Display(abc.ABC):
    """Shows round reports as they come; a context manager."""

    def __enter__(self) -> Display:
        return self

    @abc.abstractmethod
    def show(self, report: RoundReport, last_round: int) -> None:
        """Show one round of a run that goes on until `last_round`."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class JsonLines(Display):
    """One JSON object per round on standard output."""

    def show(self, report: RoundReport, last_round: int) -> None:
        sys.stdout.write(json_line(report) + "\n")
        sys.stdout.flush()


class PlainLines(Display):
    """A line for the first, the last, and at most one round a second in between."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self._shown = -math.inf
        self._scores: dict[str, float] = {}

    def show(self, report: RoundReport, last_round: int) -> None:
        self._scores = report.central or report.clients or self._scores
        now = time.monotonic()
        if report.server_round != last_round and now - self._shown < self.interval_s:
            return
        self._shown = now
        sys.stdout.write(describe(report, last_round, self._scores) + "\n")
        sys.stdout.flush()


class LiveLine(Display):
    """A progress bar with the latest figures and the time remaining."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(*columns, console=console or Console())
        self._task: TaskID = self._bar.add_task("starting", total=None)
        self._scores: dict[str, float] = {}
        self._started = False

    def __enter__(self) -> LiveLine:
        self._bar.start()
        return self

    def show(self, report: RoundReport, last_round: int) -> None:
        self._scores = report.central or report.clients or self._scores
        text = describe(report, last_round, self._scores)
        if not self._started:  # what a resumed run did earlier says nothing of its speed now
            self._started = True
            self._bar.reset(self._task, total=last_round, completed=report.server_round)
        self._bar.update(self._task, completed=report.server_round, description=text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def describe(report: RoundReport, last_round: int, scores: dict[str, float]) -> str:
    """Return one round in one line.

    Args:
        report: The round.
        last_round: Of the run.
        scores: The latest evaluation, which may be an earlier round's.
    """
    parts = [f"round {report.server_round}/{last_round}"]
    parts += [f"{name} {value:.4f}" for name, value in scores.items() if name != "num-examples"]
    if "train-loss" in report.train:
        parts.append(f"train loss {report.train['train-loss']:.4f}")
    if report.privacy:
        limit = "" if report.budget is None else f", of a budget of {report.budget:g}"
        parts.append(report.privacy + limit)
    if report.server_round:
        on_time = len(report.admitted) - report.arrived_late
        parts.append(f"replies {on_time}/{report.asked}")
    if report.late:
        parts.append(f"late {report.late}")
    if report.arrived_late:
        parts.append(f"arrived late {report.arrived_late}")
    if report.rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.rejected.items())
        parts.append(f"rejected {sum(report.rejected.values())} ({reasons})")
    return "  ".join(parts)


def display(*, as_json: bool = False) -> Display:
    """Return the display that suits where standard output goes."""
    if as_json:
        return JsonLines()
    return LiveLine() if sys.stdout.isatty() else PlainLines()
