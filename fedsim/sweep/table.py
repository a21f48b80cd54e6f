"""What a user sees of a sweep: one live table on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import abc
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsim.report.measures import show, show_seconds, word
from fedsim.sweep.folder import (
    AGAIN,
    BUDGET,
    DONE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PLANNED,
    PRUNED,
    STARTED,
    Entry,
)
from fedsim.sweep.outcome import Epsilon

WORDS = {
    PLANNED: "waiting",
    AGAIN: "waiting again",
    STARTED: "running",
    FINISHED: "finished",
    BUDGET: "budget spent",
    PRUNED: "pruned",
    FAILED: "failed",
    INTERRUPTED: "stopped",
}
_STYLE = {STARTED: "bold", FINISHED: "green", BUDGET: "green", FAILED: "red", INTERRUPTED: "yellow"}
_FIRST = {STARTED: 0, FAILED: 1, INTERRUPTED: 2, BUDGET: 3, FINISHED: 3, PRUNED: 3}
"""Which rows are shown where not all of them fit."""


@dataclass
class Row:
    """A point as it stands.

    Attributes:
        entry: What is written down of it.
        server_round, name, value, epsilon: Its latest figures, where there are any.
    """

    entry: Entry
    server_round: int | None = None
    name: str | None = None
    value: float | None = None
    epsilon: Epsilon | None = None

    @property
    def figures(self) -> str:
        """The headline metric in words, or empty."""
        if self.name is None or self.value is None:
            return ""
        return f"{word(self.name)} {show(self.name, self.value)}"


class Display(abc.ABC):
    """Shows a sweep as it goes on; a context manager."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abc.abstractmethod
    def changed(self, row: Row, rows: Sequence[Row]) -> None:
        """Show that the status of a point has changed."""

    def tick(self, rows: Sequence[Row]) -> None:
        """Show what else has changed; called a few times a second."""
        return None


class JsonLines(Display):
    """One JSON object per change of a status on standard output."""

    def changed(self, row: Row, rows: Sequence[Row]) -> None:
        sys.stdout.write(json.dumps(as_json(row), allow_nan=False) + "\n")
        sys.stdout.flush()


class PlainLines(Display):
    """One line per point that has ended."""

    def changed(self, row: Row, rows: Sequence[Row]) -> None:
        if row.entry.status not in (*DONE, PRUNED, FAILED, INTERRUPTED):
            return
        done = sum(other.entry.status in (*DONE, PRUNED, FAILED) for other in rows)
        parts = [f"{done}/{len(rows)}", row.entry.point.label, WORDS[row.entry.status]]
        if row.server_round is not None:
            parts.append(f"round {row.server_round}/{row.entry.rounds}")
        parts += [row.figures] if row.figures else []
        if row.epsilon is not None:
            parts.append(f"epsilon {row.epsilon.value:.3g} (delta {row.epsilon.delta:g})")
        if row.entry.reason and row.entry.status in (FAILED, PRUNED):
            parts.append(row.entry.reason)
        sys.stdout.write("  ".join(parts) + "\n")
        sys.stdout.flush()


@dataclass
class LiveTable(Display):
    """All points that fit on the screen, those that run or have failed before the others."""

    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self._live = Live(console=self.console, auto_refresh=False)
        self._began = time.monotonic()
        self._at_first: int | None = None

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def changed(self, row: Row, rows: Sequence[Row]) -> None:
        self.tick(rows)

    def tick(self, rows: Sequence[Row]) -> None:
        self._live.update(self._render(rows), refresh=True)

    def _render(self, rows: Sequence[Row]) -> Group:
        ended = sum(row.entry.status in (*DONE, PRUNED, FAILED) for row in rows)
        if self._at_first is None:
            self._at_first = ended
        foot = [_counts(rows)]
        if left := self._left(ended - self._at_first, len(rows) - ended):
            foot.append(left)
        lines = [Text("  ".join(foot))]
        meanings = list(dict.fromkeys(row.epsilon.meaning for row in rows if row.epsilon))
        lines += [Text(f"epsilon at {meaning}", style="dim") for meaning in meanings[:3]]
        room = max(3, self.console.height - 4 - 2 * len(lines))
        return Group(_table(_fitting(rows, room)), *lines)

    def _left(self, ended: int, left: int) -> str:
        if not ended or not left:
            return ""
        each = (time.monotonic() - self._began) / ended
        return f"about {show_seconds(each * left)} left"


def display(*, as_json: bool) -> Display:
    """Return the display that suits where standard output goes."""
    if as_json:
        return JsonLines()
    return LiveTable() if sys.stdout.isatty() else PlainLines()


def settings_lines(summary: Mapping[str, Any], most: int = 20) -> list[str]:
    """Return the end of a sweep in lines: its settings, and what choosing among them costs.

    Args:
        summary: What `summary.json` of the sweep holds.
        most: How many settings are shown; the report has them all.
    """
    settings = [s for s in summary.get("settings", []) if s["value"]]
    rows = []
    for setting in settings[:most]:
        label = " ".join(f"{key}={value}" for key, value in setting["axes"].items()) or "all seeds"
        row = [label, f"{word(setting['metric'])} {setting['value']}", _seeds(setting["seeds"])]
        if privacy := setting["privacy"]:
            row.append(f"epsilon {privacy['epsilon']:.3g} (delta {privacy['delta']})")
        rows.append([*row, "on the Pareto front"] if setting["pareto"] else row)
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)) for row in rows]
    if len(settings) > most:
        lines.append(f"... {len(settings) - most} more settings are in the report")
    lines += [f"privacy: {cost['statement']}" for cost in summary.get("tuning", [])]
    return [line.rstrip() for line in lines]


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def as_json(row: Row) -> dict[str, object]:
    """Return a row for machines; an epsilon comes with its terms, or not at all."""
    value = row.value if row.value is not None and math.isfinite(row.value) else None
    epsilon = row.epsilon and {"epsilon": row.epsilon.value, **dict(row.epsilon.terms)}
    return {
        "point": row.entry.number,
        "axes": row.entry.point.axes,
        "status": row.entry.status,
        "round": row.server_round,
        "rounds": row.entry.rounds,
        "metric": row.name,
        "value": value,
        "privacy": epsilon,
        "reason": row.entry.reason,
        "run": row.entry.run,
        "command": row.entry.point.command,
    }


def _counts(rows: Sequence[Row]) -> str:
    counted = [(s, sum(row.entry.status == s for row in rows)) for s in WORDS]
    told = [f"{count} {WORDS[status]}" for status, count in counted if count]
    return f"{len(rows)} points: {', '.join(told)}"


def _fitting(rows: Sequence[Row], room: int) -> list[Row]:
    """Return at most `room` rows, in their order."""

    # Of those that are done, the latest tell most; of those that wait, the next ones.
    def rank(row: Row) -> tuple[int, int]:
        status = row.entry.status
        return _FIRST.get(status, 4), -row.entry.number if status in DONE else row.entry.number

    kept = sorted(rows, key=rank)[:room]
    return sorted(kept, key=lambda row: row.entry.number)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    private = any(row.epsilon for row in rows)
    keys = list(dict.fromkeys(key for row in rows for key in row.entry.point.axes))
    table.add_column("", justify="right", style="dim")
    for key in keys:
        table.add_column(Text(key), overflow="fold")
    table.add_column("status")
    table.add_column("round", justify="right")
    table.add_column("result", justify="right", no_wrap=True)
    if private:
        table.add_column("epsilon", justify="right")
    for row in rows:
        entry = row.entry
        at = "" if row.server_round is None else f"{row.server_round}/{entry.rounds}"
        cells = [Text(entry.point.axes.get(key, "")) for key in keys]
        cells.append(Text(WORDS[entry.status], style=_STYLE.get(entry.status, "dim")))
        cells += [Text(at), Text(row.figures)]
        if private:
            cells.append(Text(f"{row.epsilon.value:.3g}" if row.epsilon else ""))
        table.add_row(str(entry.number), *cells)
    return table
