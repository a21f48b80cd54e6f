"""The lines of `metrics.jsonl` as columns.

A line is reduced as it is read: of the per-client metrics only their spread is kept (and, of the
latest evaluation, the values), so that a report of many rounds over many clients stays small.

Shapes: R rounds, M rounds in which a metric was measured, K clients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

GROUPS = ("train", "clients", "central", "diagnostics")
"""The fields of a round that hold named numbers."""

CLIENT_INDEX = "client-index"

By = Literal["round", "time", "simulated", "bytes"]
"""What a metric is drawn over: rounds, wall time, or what the rounds so far took of the clients."""

HUGE = 1e100
"""A value beyond this is as good as infinite: the run has diverged, and no axis can hold it."""

END = 2**32
"""Client indices and round numbers end before this."""
_MOST_DETAILS = 12


def drawable(values: np.ndarray) -> np.ndarray:
    """Return which values are numbers of a size that can be drawn and averaged."""
    within: np.ndarray = np.abs(values) <= HUGE  # false for NaN
    return within


@dataclass(frozen=True)
class Series:
    """One metric: its values in the rounds in which it was measured; both `[M]`, by round."""

    round_M: np.ndarray
    value_M: np.ndarray

    def by_round(self) -> dict[int, float]:
        """Return {round: value}."""
        return dict(zip(self.round_M.tolist(), self.value_M.tolist(), strict=True))

    def finite(self) -> Series:
        """Return the part that can be drawn."""
        good = drawable(self.value_M)
        return Series(self.round_M[good], self.value_M[good])


@dataclass(frozen=True)
class Spread:
    """One metric over clients: unweighted mean, 10th and 90th percentile by round, each `[M]`."""

    round_M: np.ndarray
    mean_M: np.ndarray
    low_M: np.ndarray
    high_M: np.ndarray


@dataclass(frozen=True)
class PerClient:
    """The clients' own metrics in one round: name -> values `[K]`, finite or not."""

    server_round: int
    client_K: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All rounds of a run, in order.

    Attributes:
        round_R: 0 (the evaluation before the first round), 1, 2, ...; int64.
        asked_R: Clients that were asked to train; int64.
        seconds_R: Wall time.
        admitted: The clients whose replies were used, int64 `[K]`, for each round.
        rejected: reason -> count by round, int64 `[R]`.
        metrics: group -> name -> values; the groups are `GROUPS`, empty ones included.
        spread: name -> spread over clients.
        latest: The clients' metrics when they were last evaluated.
        evaluated: The same of every round in which they were, in order.
        footprint: Exchange -> what it took of each client over all rounds.
        details: The first few rejections in words, with their round.
        simulated_R: Simulated seconds since the start; NaN where they cannot be told.
        bytes_R: Bytes that clients received and sent in each round; 0 without a device profile.
    """

    round_R: np.ndarray
    asked_R: np.ndarray
    seconds_R: np.ndarray
    admitted: tuple[np.ndarray, ...]
    rejected: dict[str, np.ndarray]
    metrics: dict[str, dict[str, Series]]
    spread: dict[str, Spread]
    latest: PerClient | None
    details: tuple[tuple[int, str], ...]
    evaluated: tuple[PerClient, ...] = ()
    footprint: dict[str, PerClient] = field(default_factory=dict)
    simulated_R: np.ndarray = field(default_factory=lambda: np.empty(0))
    bytes_R: np.ndarray = field(default_factory=lambda: np.empty(0))

    def places(self, by: By) -> np.ndarray | None:
        """Return where each round lies on an axis, float64 `[R]`, bytes in MB; None if unknown."""
        if by == "round":
            return self.round_R.astype(np.float64)
        if by == "time":
            return np.cumsum(self.seconds_R)
        if by == "bytes":
            return np.cumsum(self.bytes_R) / 1e6 if self.bytes_R.any() else None
        known = len(self.simulated_R) and np.isfinite(self.simulated_R).all()
        return self.simulated_R if known and self.simulated_R.any() else None

    @property
    def admitted_R(self) -> np.ndarray:
        """How many replies were used, int64 `[R]`."""
        return np.array([len(clients) for clients in self.admitted], np.int64)

    @property
    def rejected_R(self) -> np.ndarray:
        """How many replies were rejected, for whatever reason, int64 `[R]`."""
        total_R = np.zeros_like(self.round_R)
        for count_R in self.rejected.values():
            total_R += count_R
        return total_R

    @property
    def last(self) -> int:
        """The latest round; 0 if none was trained."""
        return int(self.round_R[-1]) if len(self.round_R) else 0


@dataclass(frozen=True, kw_only=True)
class _Line:
    server_round: int
    asked: int
    seconds: float
    admitted: np.ndarray
    rejected: dict[str, int]
    metrics: dict[str, dict[str, float]]
    spread: dict[str, tuple[float, float, float]]
    per_client: PerClient | None
    footprint: dict[str, PerClient]
    simulated: float
    details: list[str]


def read_rounds(lines: Iterable[bytes]) -> tuple[Rounds, list[str]]:
    """Read the lines of `metrics.jsonl`, and say in words what had to be left out.

    A last line without its line end is still being written: it is left out without a word. Where a
    round appears twice, its later line counts.
    """
    kept: dict[int, _Line] = {}
    damaged: list[int] = []
    repeated = 0
    latest: PerClient | None = None
    for number, text in enumerate(lines, start=1):
        try:
            line = _parse(text)
        except (ValueError, TypeError, OverflowError, RecursionError):
            if text.endswith(b"\n"):
                damaged.append(number)
            continue
        repeated += line.server_round in kept
        kept[line.server_round] = line
        if line.per_client and (not latest or line.server_round >= latest.server_round):
            latest = line.per_client
    problems = []
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        problems.append(f"{_count(len(damaged), 'line')} left out as unreadable: {which}")
    if repeated:
        problems.append(f"{_count(repeated, 'round')} given twice; the later line counts")
    return _columns([kept[key] for key in sorted(kept)], latest), problems


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _columns(lines: list[_Line], latest: PerClient | None) -> Rounds:
    round_R = np.array([line.server_round for line in lines], np.int64)
    reasons = sorted({reason for line in lines for reason in line.rejected})
    details = [(line.server_round, text) for line in lines for text in line.details]
    return Rounds(
        round_R=round_R,
        asked_R=np.array([line.asked for line in lines], np.int64),
        seconds_R=np.array([line.seconds for line in lines], np.float64),
        admitted=tuple(line.admitted for line in lines),
        rejected={
            reason: np.array([line.rejected.get(reason, 0) for line in lines], np.int64)
            for reason in reasons
        },
        metrics={
            group: {
                name: _series([(n.server_round, n.metrics[group].get(name)) for n in lines])
                for name in dict.fromkeys(name for n in lines for name in n.metrics[group])
            }
            for group in GROUPS
        },
        spread={
            name: _spread([(n.server_round, n.spread[name]) for n in lines if name in n.spread])
            for name in dict.fromkeys(name for n in lines for name in n.spread)
        },
        latest=latest,
        details=tuple(details[:_MOST_DETAILS]),
        evaluated=tuple(line.per_client for line in lines if line.per_client),
        footprint={
            exchange: _summed([n.footprint[exchange] for n in lines if exchange in n.footprint])
            for exchange in dict.fromkeys(exchange for n in lines for exchange in n.footprint)
        },
        simulated_R=np.array([line.simulated for line in lines], np.float64),
        bytes_R=np.array([_bytes(line.footprint) for line in lines], np.float64),
    )


def _summed(rounds: list[PerClient]) -> PerClient:
    """Add up columns over rounds, client by client; of columns that every round has."""
    client_K, row_M = np.unique(
        np.concatenate([one.client_K for one in rounds]), return_inverse=True
    )
    shared = [name for name in rounds[0].values if all(name in one.values for one in rounds)]
    total = {
        name: np.bincount(row_M, np.concatenate([one.values[name] for one in rounds]))
        for name in shared
    }
    return PerClient(rounds[-1].server_round, client_K, total)


def _bytes(footprint: dict[str, PerClient]) -> float:
    """Return what clients received and sent; among neighbours, what one sends another receives."""
    columns = []
    for one in footprint.values():
        names = ("bytes-up",) if "replied" in one.values else ("bytes-down", "bytes-up")
        columns += [one.values[name] for name in names if name in one.values]
    return float(sum(np.nan_to_num(column).clip(0, END**2).sum() for column in columns))


def _series(points: list[tuple[int, float | None]]) -> Series:
    measured = [(r, value) for r, value in points if value is not None]
    rounds, values = zip(*measured, strict=True)
    return Series(np.array(rounds, np.int64), np.array(values, np.float64))


def _spread(points: list[tuple[int, tuple[float, float, float]]]) -> Spread:
    mean_M, low_M, high_M = np.array([values for _, values in points], np.float64).T
    return Spread(np.array([r for r, _ in points], np.int64), mean_M, low_M, high_M)


def _parse(text: bytes) -> _Line:
    """Read one line.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: It is not what a run writes.
    """
    line = json.loads(text)
    if not isinstance(line, dict) or "server_round" not in line:
        raise ValueError("not a round")
    server_round = _whole(line["server_round"])
    seconds = _number(line.get("seconds", 0.0))
    simulated = _number(line.get("simulated_seconds"))
    per_client = _per_client(server_round, _mapping(line.get("per_client", {})))
    metrics = {
        group: {name: _number(v) for name, v in _mapping(line.get(group, {})).items()}
        for group in GROUPS
    }
    rejected = _mapping(line.get("rejected", {}))
    return _Line(
        server_round=server_round,
        asked=_whole(line.get("asked", 0)),
        seconds=seconds if 0 <= seconds < END else 0.0,
        admitted=_indices(line.get("admitted", [])),
        rejected={reason: _whole(count) for reason, count in rejected.items()},
        metrics=metrics,
        spread=_spreads(per_client),
        per_client=per_client,
        footprint={
            exchange: columns
            for exchange, told in _mapping(line.get("footprint", {})).items()
            if (columns := _per_client(server_round, _mapping(told)))
        },
        simulated=simulated if 0 <= simulated < END else math.nan,
        details=[str(text)[:1000] for text in _sequence(line.get("details", []))[:_MOST_DETAILS]],
    )


def _per_client(server_round: int, columns: dict[str, Any]) -> PerClient | None:
    client_K = _indices(columns.get(CLIENT_INDEX, []))
    values = {
        name: np.array([_number(v) for v in _sequence(column)], np.float64)
        for name, column in columns.items()
        if name != CLIENT_INDEX
    }
    fitting = {name: column for name, column in values.items() if len(column) == len(client_K)}
    return PerClient(server_round, client_K, fitting) if len(client_K) and fitting else None


def _spreads(per_client: PerClient | None) -> dict[str, tuple[float, float, float]]:
    spreads = {}
    for name, value_K in (per_client.values if per_client else {}).items():
        finite_K = value_K[drawable(value_K)]
        if len(finite_K):
            low, high = np.percentile(finite_K, [10, 90])
            spreads[name] = (float(finite_K.mean()), float(low), float(high))
    return spreads


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _sequence(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _indices(value: object) -> np.ndarray:
    return np.array([_whole(client) for client in _sequence(value)], np.int64)


def _number(value: object) -> float:
    """Return a number as a float; null, as some writers put a NaN, is one."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("not a number")
    return float(value)


def _whole(value: object) -> int:
    """Return an integer of 0 or more; client indices among the metrics are written as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < END:
        raise ValueError("not a count")
    return value
