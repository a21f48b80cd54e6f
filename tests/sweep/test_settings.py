"""Settings over seeds, the Pareto front, and what choosing costs: values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.sweep.report import tuning_costs
from fedsim.sweep.settings import Setting, best, by_meaning, pareto, read_runs, settings_of
from fedsim.sweep.tuning import best_of, describe, tuning_cost

from .made_up import make_sweep, private


def point(value: float | None, *, privacy: Any = None, **axes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"axes": {key.replace("__", "."): v for key, v in axes.items()}}
    made |= {} if value is None else {"value": value}
    return made | ({"privacy": privacy} if privacy else {})


def settings(root: Path, *points: dict[str, Any]) -> list[Setting]:
    return settings_of(read_runs(make_sweep(root, points)))


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    a, b, c = settings(
        tmp_path,
        *(point(value, lr=0.1, seed=s) for s, value in enumerate((0.5, 0.7, 0.9, None))),
        point(0.4, lr=0.2, seed=0),
        point(None, lr=0.3, seed=0),
    )
    assert (a.label, a.metric, a.planned, len(a.value_S)) == ("lr=0.1", "accuracy", 4, 3)
    assert a.mean == pytest.approx(0.7, abs=1e-15)
    assert a.deviation == pytest.approx(0.2, abs=1e-15)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert (b.mean, math.isnan(b.deviation)) == (0.4, True)
    assert math.isnan(c.mean) and c.metric == ""
    top = best([a, b, c], "accuracy")
    assert top is a


def test_failed_runs_and_numbers_that_are_none_do_not_count(tmp_path: Path) -> None:
    failed = point(0.9, lr=1, seed=0) | {"status": "failed", "reason": "why"}
    (a,) = settings(tmp_path, failed, point(0.5, lr=1, seed=1), point(math.nan, lr=1, seed=2))
    assert a.value_S.tolist() == [0.5]
    assert (a.planned, a.left_out) == (3, 1)


def test_the_epsilon_of_a_setting_is_its_largest(tmp_path: Path) -> None:
    made = [point(0.5, e=1, seed=s, privacy=private(1.0 + s / 10)) for s in range(3)]
    made += [point(0.5, e=2, seed=0, privacy=private(2.0)), point(0.5, e=2, seed=1)]
    made += [point(0.5, e=3, seed=s, privacy=private(2.0, delta=10.0**-s)) for s in (5, 6)]
    a, b, c = settings(tmp_path, *made)
    assert a.epsilon is not None and a.epsilon.value == 1.2
    assert b.epsilon is None, "one of its runs has none"
    assert c.epsilon is None, "its runs mean different things by it"
    assert [len(group) for group in by_meaning([a, b, c]).values()] == [1]


def test_pareto_front_by_hand(tmp_path: Path) -> None:
    values = [(1, 0.50), (2, 0.45), (2, 0.60), (4, 0.60), (8, 0.70), (8, 0.70), (9, 0.70)]
    made = [point(v, n=i, privacy=private(float(e))) for i, (e, v) in enumerate(values)]
    front = pareto(settings(tmp_path, *made))
    assert [setting.axes["n"] for setting in front] == ["0", "2", "4", "5"]


def test_pareto_front_beats_everything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = [(float(rng.integers(1, 9)), float(rng.integers(1, 9)) / 10) for _ in range(40)]
    made = [point(v, n=i, privacy=private(e)) for i, (e, v) in enumerate(values)]
    on = {int(setting.axes["n"]) for setting in pareto(settings(tmp_path, *made))}

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    assert on == {
        i for i, mine in enumerate(values) if not any(beats(other, mine) for other in values)
    }


def test_choosing_the_best_costs_the_sum(tmp_path: Path) -> None:
    made = [point(0.5, e=e, privacy=private(float(e))) for e in (1, 2, 4)]
    made.append(point(0.1, e=8, privacy=private(8.0)) | {"status": "failed", "reason": "late"})
    made.append(point(0.9, e=0))
    (cost,) = tuning_costs(read_runs(make_sweep(tmp_path, made)))
    assert (cost.runs, cost.single.value, cost.composed) == (4, 8.0, 15.0)
    assert cost.composed_delta == pytest.approx(4e-5, rel=1e-12)
    assert cost.best_of is None
    text = describe(cost)
    assert "epsilon 15 at delta 4e-05" in text and "best of the 4 private runs" in text
    assert "Tuning not charged" in text and "unit: user" in text
    text = describe(cost, searched=True)
    assert "epsilon 15 at delta 4e-05" in text and "before the search began" in text
    assert "without looking" not in text and "unit: user" in text


def test_what_the_mechanism_says_of_choosing(tmp_path: Path) -> None:
    table = {"2": 2.5, "3": 3.5, "10": 5.0, "x": 0.1, "100": math.inf, "50": True}
    made = [point(0.5, e=e, privacy=private(float(e), best_of=table)) for e in (1, 2, 4)]
    (cost,) = tuning_costs(read_runs(make_sweep(tmp_path / "a", made)))
    assert (cost.best_of_runs, cost.best_of) == (3, 3.5)
    assert "epsilon 3.5 at delta 1e-05" in describe(cost)
    assert "Tuning not charged" not in describe(cost)
    made[1] = point(0.5, e=2, privacy=private(2.0))  # one run says nothing: no bound for all
    (cost,) = tuning_costs(read_runs(make_sweep(tmp_path / "b", made)))
    assert cost.best_of is None
    assert best_of({"best_of": table}, 11) is None, "never a bound for fewer runs"
    assert best_of({"best_of": [1]}, 1) is None


def test_epsilons_for_different_units_are_not_added(tmp_path: Path) -> None:
    made = [point(0.5, e=e, u=u, privacy=private(e, unit=u)) for e in (1, 2) for u in ("a", "b")]
    costs = tuning_costs(read_runs(make_sweep(tmp_path, made)))
    assert [cost.composed for cost in costs] == [3, 3]
    assert tuning_cost(read_runs(make_sweep(tmp_path / "x", made[:1]))) is None
