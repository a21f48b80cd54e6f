"""Trace replay: who took part in which round is read from a file.

CSV, one row per participation (a round without rows, or with an empty client, has nobody):

    round,client
    1,0
    1,7
    3,2

JSON lines, one object per round:

    {"round": 1, "clients": [0, 7]}
    {"round": 3, "clients": [2]}

Rounds count from 1 and the trace is as long as its largest round. What happens after its end is
said by `at_end`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from fedsim.errors import ConfigError, DataError
from fedsim.participation.base import ParticipationPart, Population, Schedule
from fedsim.text_file import opened

_MAX_ROUND = 10_000_000
"""A larger round means a damaged file."""

Rows = Iterator[tuple[int, int, list[int]]]
"""(line number, round, clients) as a file gives them."""


@dataclass(frozen=True, kw_only=True)
class Trace(ParticipationPart):
    """Participation as a file recorded it.

    Attributes:
        path: A `.csv` or `.jsonl` file, relative to the working directory; `~` is expanded.
        at_end: After the last round of the trace: `repeat` starts it again, `empty` has no one
            take part, `error` stops the run.
    """

    path: str = ""
    at_end: Literal["repeat", "empty", "error"] = "error"

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`.

        Raises:
            ConfigError: No path is given, or there is no such file.
            DataError: The file is damaged or names a client that the population does not have.
        """
        if not self.path:
            raise ConfigError(
                "path: no trace file is named; give a CSV or JSON-lines file, e.g."
                " participation.path=trace.csv"
            )
        path = Path(os.path.expanduser(self.path))  # unlike Path's, never raises
        cohorts = read_trace(path, population.num_clients)
        return TraceSchedule(cohorts, population.num_clients, self.at_end)


class TraceSchedule(Schedule):
    """Replay of `cohorts[0]` in round 1, `cohorts[1]` in round 2, ...

    Args:
        cohorts: Sorted, distinct client indices of each round; not empty.
        num_clients: N.
        at_end: See `Trace`.
    """

    def __init__(
        self,
        cohorts: list[np.ndarray],
        num_clients: int,
        at_end: Literal["repeat", "empty", "error"],
    ) -> None:
        self.cohorts = cohorts
        self.num_clients = num_clients
        self.at_end = at_end

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`.

        Raises:
            ConfigError: The trace is over and `at_end` is `error`.
        """
        length = len(self.cohorts)
        if server_round > length and self.at_end == "error":
            raise ConfigError(
                f"at_end: 'error', and the trace ends with round {length} while the run goes on to"
                f" round {server_round}; use rounds={length}, participation.at_end=repeat or"
                " participation.at_end=empty"
            )
        if server_round > length and self.at_end == "empty":
            return np.empty(0, np.int64)
        return self.cohorts[(server_round - 1) % length].copy()

    def rates(self) -> np.ndarray:
        """Return each client's share of the trace's rounds, float64 `[N]`; 0 if it has none."""
        count_N = np.bincount(np.concatenate(self.cohorts), minlength=self.num_clients)
        return count_N / len(self.cohorts)


def read_trace(path: Path, num_clients: int) -> list[np.ndarray]:
    """Read a trace; entry `t` holds the sorted, distinct client indices of round `t + 1`.

    Raises:
        ConfigError: There is no such file, or its name ends in neither .csv nor .jsonl.
        DataError: The file is damaged or names a client outside 0..num_clients-1.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise ConfigError(f"path: '{path}' is not a trace; expected a name in .csv or .jsonl")
    rounds: dict[int, set[int]] = {}
    with opened(path, "a text file") as file:
        for line, server_round, clients in readers[path.suffix](path, file):
            if not 1 <= server_round <= _MAX_ROUND:
                raise _damaged(path, line, f"round {server_round} is outside 1..{_MAX_ROUND}")
            for client in clients:
                if not 0 <= client < num_clients:
                    reason = f"client {client} is outside 0..{num_clients - 1}"
                    raise _damaged(path, line, reason)
            rounds.setdefault(server_round, set()).update(clients)
    if not rounds:
        raise DataError(f"path: '{path}' holds no rounds")
    cohorts = [np.empty(0, np.int64)] * max(rounds)
    for server_round, members in rounds.items():
        cohorts[server_round - 1] = np.array(sorted(members), np.int64)
    return cohorts


def _csv_rows(path: Path, file: TextIO) -> Rows:
    reader = csv.reader(file)
    header = [cell.strip() for cell in next(reader, [])]
    if header != ["round", "client"]:
        raise _damaged(path, 1, f"the header is {','.join(header)!r}; expected 'round,client'")
    for row in reader:
        if not row:
            continue
        try:
            server_round, client = row
            yield reader.line_num, int(server_round), [int(client)] if client.strip() else []
        except ValueError:
            reason = f"{','.join(row)!r} is not 'round,client' in whole numbers"
            raise _damaged(path, reader.line_num, reason) from None


def _jsonl_rows(path: Path, file: TextIO) -> Rows:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            raise _damaged(path, line, "not JSON") from None
        if not _is_entry(entry):
            raise _damaged(path, line, 'expected {"round": 1, "clients": [0, 7]}')
        yield line, entry["round"], entry["clients"]


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"round", "clients"}:
        return False
    server_round, clients = entry["round"], entry["clients"]
    # `type`, since a JSON true would pass as the integer 1.
    return isinstance(clients, list) and all(type(n) is int for n in (server_round, *clients))


def _damaged(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"path: '{path}', line {line}: {reason}")
