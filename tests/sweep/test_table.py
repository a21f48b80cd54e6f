"""What a user sees of a sweep."""

from __future__ import annotations

import io

from rich.console import Console

from fedsim.sweep.folder import FAILED, FINISHED, STARTED, Entry
from fedsim.sweep.grid import Point
from fedsim.sweep.outcome import epsilon_of
from fedsim.sweep.table import LiveTable, PlainLines, Row, as_json

from .made_up import TERMS, private


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
