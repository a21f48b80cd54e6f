"""Replay of availability: the intervals of simulated time in which clients are there, from a file.

CSV, one row per interval, in seconds from the beginning of the run:

    client,start,end
    0,0,3600
    7,1800,5400
    0,7200,9000

A client is there from `start` on, and no longer at `end`. Its intervals may overlap; one without
any is never there. The file is as long as its latest end, and `at_end` says what comes after it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TextIO

import numpy as np

from fedsim.errors import ConfigError, DataError
from fedsim.participation.base import ParticipationPart, Population, Schedule
from fedsim.participation.timed import TimedSchedule
from fedsim.parts import Range
from fedsim.text_file import header_and_rows, opened

_HEADER = ["client", "start", "end"]
_MAX_SECONDS = 1e12
"""A later time means a damaged file."""


@dataclass(frozen=True, kw_only=True)
class Intervals(ParticipationPart):
    """Availability as a file recorded it.

    Attributes:
        path: A CSV file, relative to the working directory; `~` is expanded.
        at_end: After the latest end: `repeat` starts again, `empty` has no one there, `error` stops
            the run.
        clients_per_round: How many of those who are there are asked; null for all.
    """

    path: str = ""
    at_end: Literal["repeat", "empty", "error"] = "repeat"
    clients_per_round: Annotated[int, Range(ge=1)] | None = 10

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`.

        Raises:
            ConfigError: No path is given, or there is no such file.
            DataError: The file is damaged or names a client that the population does not have.
        """
        if not self.path:
            raise ConfigError(
                "path: no file of intervals is named; give a CSV file with the header "
                f"{','.join(_HEADER)}, e.g. participation.path=intervals.csv"
            )
        path = Path(os.path.expanduser(self.path))
        client_R, start_R, end_R = read_intervals(path, population.num_clients)
        return IntervalsSchedule(client_R, start_R, end_R, self, population)


class IntervalsSchedule(TimedSchedule):
    """Intervals `[start_R, end_R)` of clients `client_R`, in the order of their start."""

    def __init__(
        self,
        client_R: np.ndarray,
        start_R: np.ndarray,
        end_R: np.ndarray,
        part: Intervals,
        population: Population,
    ) -> None:
        super().__init__(population.num_clients, part.clients_per_round, population.seed)
        order_R = np.argsort(start_R, kind="stable")
        self.client_R, self.start_R, self.end_R = (
            client_R[order_R],
            start_R[order_R],
            end_R[order_R],
        )
        self.at_end, self.length = part.at_end, float(end_R.max())

    def there(self, seconds: float) -> np.ndarray:
        """See `TimedSchedule.there`.

        Raises:
            ConfigError: The file is over and `at_end` is `error`.
        """
        if seconds >= self.length and self.at_end == "error":
            raise ConfigError(
                f"at_end: 'error', and the intervals end at {self.length:g} s while the run goes "
                "on after that; use participation.at_end=repeat or participation.at_end=empty"
            )
        into = math.fmod(seconds, self.length) if self.at_end == "repeat" else seconds
        begun = int(np.searchsorted(self.start_R, into, side="right"))
        there_N = np.zeros(self.num_clients, bool)
        there_N[self.client_R[:begun][self.end_R[:begun] > into]] = True
        return there_N

    def next_change(self, seconds: float) -> float | None:
        """Return when the next interval starts."""
        into = math.fmod(seconds, self.length) if self.at_end == "repeat" else seconds
        begun = int(np.searchsorted(self.start_R, into, side="right"))
        if begun < len(self.start_R):
            return seconds - into + float(self.start_R[begun])
        if self.at_end == "repeat":
            return seconds - into + self.length + float(self.start_R[0])
        return None if self.at_end == "empty" else max(seconds, self.length)

    def share(self) -> np.ndarray:
        """See `TimedSchedule.share`; overlaps count once."""
        seconds_N, until_N = np.zeros(self.num_clients), np.zeros(self.num_clients)
        rows = zip(self.client_R.tolist(), self.start_R.tolist(), self.end_R.tolist(), strict=True)
        for client, start, end in rows:
            seconds_N[client] += max(0.0, end - max(start, until_N[client]))
            until_N[client] = max(until_N[client], end)
        return seconds_N / self.length


def read_intervals(path: Path, num_clients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a file of intervals: clients, starts and ends, each `[R]`.

    Raises:
        ConfigError: There is no such file.
        DataError: The file is damaged, or names a client outside 0..num_clients-1.
    """
    with opened(path, "a CSV file") as file:
        rows = _rows(path, file, num_clients)
    if not rows:
        raise DataError(f"path: '{path}' holds no intervals")
    client_R, start_R, end_R = zip(*rows, strict=True)
    return np.array(client_R, np.int64), np.array(start_R), np.array(end_R)


def _rows(path: Path, file: TextIO, num_clients: int) -> list[tuple[int, float, float]]:
    header, cells = header_and_rows(path, file)
    if header != _HEADER:
        raise DataError(
            f"path: '{path}', line 1: the header is {','.join(header)[:200]!r}; expected "
            f"'{','.join(_HEADER)}'"
        )
    rows: list[tuple[int, float, float]] = []
    for where, row in cells:
        client, start, end = (
            _number(f"{where}, column '{name}'", name, cell)
            for name, cell in zip(_HEADER, row, strict=True)
        )
        if not 0 <= client < num_clients:
            raise DataError(
                f"{where}, column 'client': {int(client)} is outside 0..{num_clients - 1}"
            )
        if start >= end:
            raise DataError(
                f"{where}: the interval ends at {end:g} s, not after its start, {start:g}"
            )
        rows.append((int(client), start, end))
    return rows


def _number(where: str, name: str, cell: str) -> float:
    text = cell.strip()
    try:
        value = math.nan if "_" in text else float(int(text) if name == "client" else float(text))
    except (ValueError, OverflowError):
        value = math.nan
    if not -1 <= value <= _MAX_SECONDS or (name != "client" and value < 0):
        kind = "a whole number" if name == "client" else f"seconds in [0, {_MAX_SECONDS:g}]"
        raise DataError(f"{where}: {text[:40]!r} is not allowed; expected {kind}")
    return value
