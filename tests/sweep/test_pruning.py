"""Runs are stopped where another beat them at the same round, and nowhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.sweep.outcome import read_outcome
from fedsim.sweep.pruning import (
    Curve,
    Goal,
    Rule,
    beaten,
    kind_of,
    read_curve,
    read_finished,
    write_finished,
)

from .made_up import TERMS

KIND = json.dumps([["unit", "user"]])


def curve(number: int, *pairs: tuple[float, float], first: int = 1) -> Curve:
    at = dict(enumerate(pairs, start=first))
    return Curve(number=number, at=at, kind=KIND, name="accuracy", planned=9.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "stopped"),
    [
        ((0.5, 1.0), (0.6, 1.0), True),
        ((0.5, 1.0), (0.5, 0.9), True),
        ((0.5, 1.0), (0.5, 1.0), False),  # as good, not better
        ((0.5, 1.0), (0.9, 1.1), False),  # better, at a larger epsilon
        ((0.5, 1.0), (0.4, 0.1), False),  # cheaper, and worse
        ((-math.inf, 1.0), (0.1, 1.0), True),  # not a number is below all others
        ((-math.inf, 1.0), (-math.inf, 1.0), False),
    ],
)
def test_the_rule(mine: tuple[float, float], theirs: tuple[float, float], stopped: bool) -> None:
    assert (beaten(curve(2, mine), [curve(1, theirs)], 1) is not None) is stopped


def test_only_the_same_round_the_same_promise_and_the_same_metric_count() -> None:
    run, other = curve(2, (0.5, 1.0)), curve(1, (0.9, 0.5))
    assert beaten(run, [other], 1) is not None
    assert beaten(run, [other], 2) is None, "before the warm-up"
    assert beaten(run, [curve(1, (0.9, 0.5), first=2)], 1) is None, "not measured there"
    late = curve(2, (0.1, 0.1), (0.9, 1.0))
    assert beaten(late, [curve(1, (0.5, 0.1), (0.8, 0.9))], 1) is None, "it has overtaken since"
    for change in ({"kind": None}, {"kind": json.dumps([["unit", "example"]])}, {"name": "loss"}):
        assert beaten(run, [Curve(**{**vars(other), **change})], 1) is None


def test_a_long_run_does_not_stop_a_short_one_that_ends_at_less_epsilon() -> None:
    """The short run would be on the Pareto front: the long one is never as good at its cost."""
    long = curve(1, (0.1, 0.5), (0.3, 1.0), (0.5, 1.4), (0.7, 2.0))
    short = Curve(**{**vars(curve(2, (0.1, 0.5), (0.2, 1.0))), "planned": 1.4})
    assert beaten(short, [long], 1) is None
    assert beaten(Curve(**{**vars(short), "planned": 2.0}), [long], 1) == (2, long)
    assert beaten(Curve(**{**vars(short), "planned": None}), [long], 1) is None, "nobody knows"


def test_no_run_is_stopped_that_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(300):
        pairs = rng.integers(0, 5, size=(6, 4, 2))  # small numbers: many are equal
        runs = [curve(n, *((float(u), float(e)) for u, e in p)) for n, p in enumerate(pairs)]
        run, others = runs[0], runs[1:]
        found = beaten(run, others, 2)
        at = pairs[:, -1]
        no_worse = (at[1:, 0] >= at[0, 0]) & (at[1:, 1] <= at[0, 1])
        better = (at[1:, 0] > at[0, 0]) | (at[1:, 1] < at[0, 1])
        assert (found is not None) == bool((no_worse & better).any())
        stopped += found is not None
    assert 30 < stopped < 270


def write(run: Path, lines: list[dict[str, Any]]) -> None:
    run.mkdir(exist_ok=True)
    (run / "privacy.json").write_text(json.dumps({"epsilon": 9.0, **TERMS}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{cut")


def line(server_round: int, value: float | None, epsilon: float) -> dict[str, Any]:
    return {"server_round": server_round, "central": {"loss": value}, "epsilon": epsilon}


def test_a_curve_is_read_from_a_run(tmp_path: Path) -> None:
    measured = [line(1, 2.0, 0.1), {"server_round": 2, "epsilon": 0.2}, line(3, None, 0.3)]
    write(tmp_path, measured)
    found = read_curve(tmp_path, 1, Goal(), KIND)
    assert found.at == {1: (-2.0, 0.1), 3: (-math.inf, 0.3)} and found.name == "loss"
    assert (found.planned, found.spent) == (9.0, 0.3)
    assert read_curve(tmp_path, 1, Goal(lowest=False, metric="loss"), KIND).at[1] == (2.0, 0.1)
    assert read_curve(tmp_path, 1, Goal(metric="accuracy"), KIND).at == {}
    assert read_curve(tmp_path, 1, Goal(), None).at[1] == (-2.0, 0.0)
    write(tmp_path, [{**measured[0], "budget": 4.0}])
    assert read_curve(tmp_path, 1, Goal(), KIND).planned == 4.0
    write_finished(tmp_path / "finished.json", [found])
    assert read_finished(tmp_path / "finished.json") == [found]
    assert read_finished(tmp_path / "none") == []


def test_a_run_marks_why_it_stops(tmp_path: Path) -> None:
    def rule(warmup: int = 2) -> Rule:
        made = Rule(
            finished=tmp_path / "finished.json",
            mark=tmp_path / "mark",
            number=2,
            warmup=warmup,
            rounds=4,
            goal=Goal(),
        )
        return Rule.from_json(made.to_json())

    write(tmp_path / "one", [line(2, 1.0, 0.5)])
    write(tmp_path / "two", [line(2, 1.5, 0.5)])
    assert not rule().stops(tmp_path / "two"), "none has finished yet"

    kind = str(kind_of(read_outcome(tmp_path / "one").epsilon))
    write_finished(tmp_path / "finished.json", [read_curve(tmp_path / "one", 1, Goal(), kind)])
    assert not rule(warmup=3).stops(tmp_path / "two")
    assert rule().stops(tmp_path / "two")
    assert (tmp_path / "mark").read_text() == (
        "at round 2 point 1 had loss 1 at epsilon 0.5, and this one loss 1.5 at epsilon 0.5"
    )
