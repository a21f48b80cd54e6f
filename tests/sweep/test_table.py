"""What a user sees of a sweep."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fedsim.sweep.folder import FAILED, FINISHED, STARTED, Entry
from fedsim.sweep.grid import Point
from fedsim.sweep.outcome import epsilon_of
from fedsim.sweep.report import summary
from fedsim.sweep.settings import read_runs, settings_of
from fedsim.sweep.table import LiveTable, PlainLines, Row, as_json, settings_lines

from .made_up import TERMS, make_sweep, private


def row(number: int, status: str, value: float | None = None, epsilon: float | None = None) -> Row:
    point = Point(scenario="quickstart", overrides=(), axes={"seed": str(number)})
    entry = Entry(
        number=number, point=point, hash="", name="q", rounds=9, status=status, reason="why [b]"
    )
    made = Row(entry, server_round=4, name="accuracy", value=value)
    if epsilon is not None:
        made.epsilon = epsilon_of(private(epsilon), [])[0]
    return made


def shown(rows: list[Row], height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=120, height=height, force_terminal=True)
    with LiveTable(console) as table:
        table.tick(rows)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_live_table() -> None:
    text = shown([row(1, STARTED, 0.5, 1.25), row(2, FAILED), row(3, FINISHED, 0.75)])
    for part in ("seed", "running", "failed", "finished", "4/9", "50.00 %", "75.00 %", "1.25"):
        assert part in text
    assert "3 points: 1 running, 1 finished, 1 failed" in text
    assert "epsilon at delta 1e-05, unit: user" in text


def test_without_privacy_there_is_no_epsilon() -> None:
    assert "epsilon" not in shown([row(1, STARTED, 0.5)])


def test_what_runs_is_shown_where_not_all_fits() -> None:
    rows = [row(n, FINISHED, 0.5) for n in range(1, 200)] + [row(200, STARTED, 0.25)]
    text = shown(rows, height=12)
    assert "25.00 %" in text and text.count("50.00 %") == 2 * 5  # drawn once more at the end
    assert "200 points: 1 running, 199 finished" in text


def test_plain_lines(capsys) -> None:
    rows = [row(1, STARTED), row(2, FINISHED, 0.5, 1.25), row(3, FAILED)]
    for each in rows:
        PlainLines().changed(each, rows)
    assert capsys.readouterr().out.splitlines() == [
        "2/3  seed=2  finished  round 4/9  accuracy 50.00 %  epsilon 1.25 (delta 1e-05)",
        "2/3  seed=3  failed  round 4/9  why [b]",
    ]


def test_json_has_no_epsilon_without_its_terms() -> None:
    assert as_json(row(1, FINISHED, 0.5))["privacy"] is None
    told = as_json(row(1, FINISHED, float("nan"), 1.25))
    assert told["value"] is None
    assert told["privacy"] == {"epsilon": 1.25, **TERMS, "delta": "1e-05"}


def test_the_end_of_a_sweep_in_lines(tmp_path: Path) -> None:
    made = [
        {"axes": {"lr": lr, "seed": s}, "value": 0.5 + s / 10, "privacy": private(float(lr))}
        for lr in (1, 2)
        for s in (0, 1)
    ]
    folder = make_sweep(tmp_path, made)
    runs = read_runs(folder)
    lines = settings_lines(summary(folder, runs, settings_of(runs)))
    assert lines[:2] == [
        "lr=1  accuracy 55.00 ± 7.07 %  2 seeds  epsilon 1 (delta 1e-05)  on the Pareto front",
        "lr=2  accuracy 55.00 ± 7.07 %  2 seeds  epsilon 2 (delta 1e-05)",
    ]
    assert lines[2].startswith("privacy: Each epsilon here is that of one run")
    assert "epsilon 6 at delta 4e-05" in lines[2] and len(lines) == 3
    short = settings_lines(summary(folder, runs, settings_of(runs)), most=1)
    assert short[1] == "... 1 more settings are in the report"
    assert settings_lines({}) == []
