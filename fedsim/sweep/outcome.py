"""What a run has come to, read from its folder: while it goes on, and at its end.

An epsilon counts only with its terms: delta, the unit that is protected, the neighbouring
relation, how clients or samples are drawn, and the accountant. A number without them is left out,
and said so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.report.measures import headline, headline_name
from fedsim.report.round_columns import Rounds, read_rounds

TERMS = ("delta", "unit", "relation", "sampling", "accountant")
"""What an epsilon means nothing without."""

KIND = ("delta", "unit", "relation", "trust")
"""The terms that must be equal for two epsilons to say the same thing; the others are how each was
arrived at. `trust` counts where it is given."""


@dataclass(frozen=True)
class Epsilon:
    """A privacy cost and its terms, the terms as the run wrote them."""

    value: float
    terms: tuple[tuple[str, str], ...]

    @property
    def delta(self) -> float:
        """The delta that it is for."""
        return float(dict(self.terms)["delta"])

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """The terms that say what is promised; epsilons of one kind can be compared."""
        return tuple((name, value) for name, value in self.terms if name in KIND)

    @property
    def meaning(self) -> str:
        """The terms in one line."""
        terms = dict(self.terms)
        trust = f", trusted: {terms['trust']}" if "trust" in terms else ""
        return (
            f"delta {terms['delta']}, unit: {terms['unit']}, neighbours: {terms['relation']}, "
            f"sampling: {terms['sampling']}, accountant: {terms['accountant']}{trust}"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run's results.

    Attributes:
        status: As in its summary; empty while it goes on.
        server_round: The last one.
        group, name, value: The headline metric; None before anything was measured.
        metrics: `<group>.<metric>` -> (latest value, its round).
        epsilon: What it cost; None if it has no privacy mechanism, or the terms are not all given.
        epsilon_problem: Why an epsilon that the run gives is not shown.
        privacy: `privacy.json` as it is.
        seconds: Wall time of all rounds.
        commit: Of the code that ran it, with a `+` if there were changes; empty if unknown.
    """

    status: str = ""
    server_round: int = 0
    group: str | None = None
    name: str | None = None
    value: float | None = None
    metrics: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    epsilon: Epsilon | None = None
    epsilon_problem: str | None = None
    privacy: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    commit: str = ""


def read_outcome(run: Path) -> Outcome:
    """Read what a run left behind; what is missing or damaged is as if not measured."""
    summary, privacy = read_json(run / "summary.json"), read_json(run / "privacy.json")
    rounds, spent = _rounds(run / "metrics.jsonl")
    head = headline(rounds)
    git = read_json(run / "env.json").get("git")
    git = git if isinstance(git, dict) else {}
    claimed = summary.get("privacy")  # at its end a run claims what it spent, not what it planned
    if isinstance(claimed, dict) and claimed.get("epsilon") is not None:
        epsilon, problem = epsilon_of(claimed, [])
    else:
        epsilon, problem = epsilon_of(privacy, [spent])
    return Outcome(
        status=str(summary.get("status", "")),
        server_round=rounds.last,
        group=head.group if head else None,
        name=head.name if head else None,
        value=head.final if head else None,
        metrics={
            f"{group}.{name}": (float(series.value_M[-1]), int(series.round_M[-1]))
            for group, named in rounds.metrics.items()
            for name, series in named.items()
            if name != "num-examples" and "epsilon" not in name.lower()
        },
        epsilon=epsilon,
        epsilon_problem=problem,
        privacy=privacy,
        seconds=float(rounds.seconds_R.sum()),
        commit=f"{git.get('commit', '')}{'+' if git.get('changed') else ''}",
    )


def epsilon_of(
    privacy: Mapping[str, Any], spent: list[object]
) -> tuple[Epsilon | None, str | None]:
    """Return a run's epsilon with its terms; or None and, if there is a number, why it is not used.

    Args:
        privacy: What `privacy.json`, or the summary, holds.
        spent: What was counted while the run went on, if anything. Where that and the plan in
            `privacy` differ, the larger one holds: it can only claim too little privacy.
    """
    given: list[Any] = [privacy.get("epsilon"), *spent]
    values = [float(v) for v in given if _is_number(v)]
    if not values:
        return None, None
    for value in values:
        if not math.isfinite(value) or value < 0:
            return None, f"epsilon {value:g} is no guarantee"
    missing = [name for name in TERMS if not _is_term(privacy.get(name))]
    if missing:
        return None, f"epsilon is given without {', '.join(missing)}, hence not shown"
    delta = privacy["delta"]
    if not _is_number(delta) or not 0 <= delta < 1:
        return None, f"delta is {delta!r}, hence epsilon is not shown"
    given_terms = [*TERMS, "trust"] if _is_term(privacy.get("trust")) else TERMS
    shown = {name: str(privacy[name]) for name in given_terms} | {"delta": f"{delta:g}"}
    return Epsilon(max(values), tuple(shown.items())), None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; an empty one if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


class Watch:
    """Follows a run that goes on: reads only what is new of its metrics.

    Args:
        run: Its folder, which may not exist yet.
    """

    def __init__(self, run: Path) -> None:
        self._metrics, self._privacy = run / "metrics.jsonl", run / "privacy.json"
        self._at = 0
        self._rest = b""
        self.server_round: int | None = None
        self.name: str | None = None
        self.value: float | None = None
        self.epsilon: Epsilon | None = None

    def poll(self) -> None:
        """Read on."""
        try:
            if self._metrics.stat().st_size < self._at:  # cut back to a checkpoint
                self._at, self._rest = 0, b""
            with self._metrics.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            return
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            try:
                report = json.loads(line)
                self._take(report)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the report will say so

    def _take(self, report: Mapping[str, Any]) -> None:
        self.server_round = int(report["server_round"])
        for group in ("central", "clients", "train"):
            name = headline_name(report.get(group, {}))
            if name is not None:
                if _is_number(report[group][name]):
                    self.name, self.value = name, float(report[group][name])
                break
        if _is_number(report.get("epsilon")):
            # The plan's own number is left out: this is what is spent so far.
            terms = {k: v for k, v in read_json(self._privacy).items() if k != "epsilon"}
            self.epsilon = epsilon_of(terms, [report["epsilon"]])[0]


def _rounds(metrics: Path) -> tuple[Rounds, float | None]:
    """Return the rounds, and the epsilon spent by the last one that gives it."""
    spent: list[float] = []

    def lines(file: Any) -> Any:
        for line in file:
            if b'"epsilon"' in line:
                try:
                    value = json.loads(line).get("epsilon")
                except (ValueError, AttributeError):
                    value = None
                if _is_number(value):
                    spent[:] = [float(value)]
            yield line

    try:
        with metrics.open("rb") as file:
            return read_rounds(lines(file))[0], spent[-1] if spent else None
    except OSError:
        return read_rounds([])[0], None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_term(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, str) and bool(value.strip()))
