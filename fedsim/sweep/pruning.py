"""When a search stops a run before its end: a rule of dominance, at one and the same round.

Optuna prunes single-objective studies only. Here, where utility u is made so that more is better,
and e is the epsilon spent so far (0 without a privacy mechanism):

    stop run c after round r, if r >= warm-up, and some FINISHED run o measured at r, too, and
        u_o(r) >= u_c(r)  and  e_o(r) <= e_c(r),  and one of the two strictly,
        and o ended at no more epsilon than c is planned to end at

The last line is for runs that differ in length, or in how epsilon grows: a long run may be ahead at
round r of a short one whose end, at a smaller epsilon, it does not beat. What c ends at is what its
privacy.json has, or its budget, where that is less; where neither is known, c is not stopped.

r is the latest round at which c was measured. Both runs are compared at this round alone, never c
halfway with o at its end. An epsilon is compared with one of its own kind (delta, unit, neighbours,
trust); runs of other kinds never stop each other. A utility that is not a finite number is below
all others.

Only finished runs stop others, so for each run that is stopped the results hold one that beat it.

Each run looks at its own file after every round, and at `finished.json`, where the search keeps
the curves of the finished runs; so with one run at once, nothing depends on how fast anything is.

What may be lost: it is a heuristic. A run that learns slowly and would have overtaken at the end is
stopped if it is behind, at no smaller epsilon, at any round after the warm-up; so is one whose
measurement at that round was unlucky. The longer the warm-up, the less of that. Without pruning
nothing is lost. What a stopped run has spent counts in the cost of the search all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedsim.files import write_atomic
from fedsim.report.measures import headline_name, lower_is_better
from fedsim.sweep.outcome import Epsilon, Watch


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The utility that a search is after.

    Attributes:
        metric: Its name; None for the headline of the runs.
        lowest: Whether less is better; None for what the name says.
    """

    metric: str | None = None
    lowest: bool | None = None

    def better_low(self, name: str) -> bool:
        """Whether less of the metric `name` is better."""
        return lower_is_better(name) if self.lowest is None else self.lowest


@dataclass(kw_only=True)
class Curve:
    """A run by round, as far as it has come.

    Attributes:
        number: Of its point.
        at: Round -> (utility, more is better; epsilon spent so far).
        kind: What its epsilon promises; None without one.
        name: Of the metric.
        planned: Epsilon at its end, as far as can be told before; None if not. 0 without privacy.
    """

    number: int
    at: dict[int, tuple[float, float]] = field(default_factory=dict)
    kind: str | None = None
    name: str = ""
    planned: float | None = 0.0

    @property
    def spent(self) -> float:
        """Epsilon at the last round that was measured."""
        return self.at[max(self.at)][1] if self.at else 0.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a run needs to know to stop itself.

    Attributes:
        finished: The file of the finished runs' curves.
        mark: What it writes, with the reason, before it stops.
        number: Of its point.
        warmup: Rounds before which it does not stop.
        rounds: Of the run; at its end it need not stop.
        goal: What is compared.
    """

    finished: Path
    mark: Path
    number: int
    warmup: int
    rounds: int
    goal: Goal

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps({**asdict(self), "finished": str(self.finished), "mark": str(self.mark)})

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        paths = {name: Path(values[name]) for name in ("finished", "mark")}
        return cls(**{**values, **paths, "goal": Goal(**values["goal"])})

    def stops(self, run: Path) -> bool:
        """Whether a run is to stop now; the reason is on the disk then."""
        if self.mark.exists():
            return True
        watch = Watch(run)
        watch.poll()
        if watch.server_round is None or not self.warmup <= watch.server_round < self.rounds:
            return False
        kind = kind_of(watch.epsilon)
        curve = read_curve(run, self.number, self.goal, kind)
        found = beaten(curve, read_finished(self.finished), self.warmup)
        if found is not None:
            write_atomic(self.mark, why(curve, *found, self.goal).encode())
        return found is not None


def kind_of(epsilon: Epsilon | None) -> str | None:
    """Return what an epsilon promises, as one word to compare."""
    return json.dumps(epsilon.kind) if epsilon else None


def write_finished(path: Path, curves: Iterable[Curve]) -> None:
    """Write the curves of the finished runs."""
    content = [{**asdict(c), "at": [[r, *pair] for r, pair in c.at.items()]} for c in curves]
    write_atomic(path, json.dumps(content).encode())


def read_finished(path: Path) -> list[Curve]:
    """Read what `write_finished` wrote; nothing if it has not been written yet."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        return []
    return [Curve(**{**c, "at": {int(r): (u, e) for r, u, e in c["at"]}}) for c in content]


def read_curve(run: Path, number: int, goal: Goal, kind: str | None) -> Curve:
    """Read a run's curve; lines that a kill has cut short count for nothing."""
    curve = Curve(number=number, kind=kind, planned=0.0 if kind is None else _planned(run))
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return curve
    for line in lines:
        try:
            report = json.loads(line)
        except ValueError:
            continue
        found = _utility(report, goal)
        spent = report.get("epsilon")
        if found is None or (kind is not None and not isinstance(spent, (int, float))):
            continue
        curve.name, value = found
        epsilon = float(spent) if kind is not None else 0.0
        budget = report.get("budget")
        if kind is not None and curve.planned is not None and isinstance(budget, (int, float)):
            curve.planned = min(curve.planned, float(budget))
        curve.at[int(report["server_round"])] = value, epsilon
    return curve


def beaten(run: Curve, finished: Iterable[Curve], warmup: int) -> tuple[int, Curve] | None:
    """Return the round and the run by which this one is beaten there, by the rule above; or None.

    Example:
        >>> slow = Curve(number=2, at={5: (0.6, 1.0)}, planned=2.0)
        >>> beaten(slow, [Curve(number=1, at={5: (0.7, 1.0), 9: (0.8, 2.0)})], warmup=3)[0]
        5
        >>> beaten(slow, [Curve(number=1, at={5: (0.7, 1.0), 9: (0.8, 2.1)})], warmup=3)  # dearer
        >>> beaten(slow, [Curve(number=1, at={5: (0.7, 1.5)})], warmup=3)  # at a larger epsilon
        >>> beaten(slow, [Curve(number=1, at={9: (0.9, 0.5)})], warmup=3)  # at another round
    """
    if not run.at or (latest := max(run.at)) < warmup:
        return None
    value, epsilon = run.at[latest]
    if run.planned is None:
        return None
    for other in finished:
        if other.kind != run.kind or other.name != run.name or latest not in other.at:
            continue
        theirs, cost = other.at[latest]
        if other.spent > run.planned:
            continue
        if theirs >= value and cost <= epsilon and (theirs > value or cost < epsilon):
            return latest, other
    return None


def why(curve: Curve, server_round: int, other: Curve, goal: Goal) -> str:
    """Return in words by whom a run is beaten."""
    sign = -1.0 if goal.better_low(curve.name) else 1.0
    parts = []
    for each in (other, curve):
        value, epsilon = each.at[server_round]
        at = f" at epsilon {epsilon:.6g}" if each.kind is not None else ""
        parts.append(f"{curve.name} {sign * value:.6g}{at}")
    return f"at round {server_round} point {other.number} had {parts[0]}, and this one {parts[1]}"


def _planned(run: Path) -> float | None:
    try:
        planned = json.loads((run / "privacy.json").read_bytes()).get("epsilon")
    except (OSError, ValueError, AttributeError):
        return None
    return float(planned) if isinstance(planned, (int, float)) else None


def _utility(report: dict[str, object], goal: Goal) -> tuple[str, float] | None:
    """Return the name and the value, more is better, of a round's metric; None if not measured."""
    for group in ("central", "clients", "train"):
        metrics = report.get(group)
        if not isinstance(metrics, dict) or not metrics:
            continue
        name = headline_name(metrics) if goal.metric is None else goal.metric
        if name is None or name not in metrics:
            if goal.metric is None:
                return None
            continue
        value = metrics[name]
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return name, -math.inf
        return name, -float(value) if goal.better_low(name) else float(value)
    return None
