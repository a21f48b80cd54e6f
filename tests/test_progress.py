"""What a user sees: a live line, plain lines, or JSON lines."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from typing import Any

import pytest
from rich.console import Console

from fedsim import progress
from fedsim.progress import JsonLines, LiveLine, PlainLines, describe, display
from fedsim.rounds import RoundReport


def report(server_round: int, **values: Any) -> RoundReport:
    return RoundReport(server_round=server_round, **values)


def test_a_round_in_one_line() -> None:
    line = describe(
        report(
            3,
            asked=10,
            admitted=[1, 2, 3],
            late=4,
            rejected={"non-finite": 2, "error": 1},
            train={"train-loss": 0.25, "num-examples": 90.0},
        ),
        20,
        {"loss": 0.5, "accuracy": 0.87654, "num-examples": 5.0},
    )
    assert line == (
        "round 3/20  loss 0.5000  accuracy 0.8765  train loss 0.2500  replies 3/10  "
        "late 4  rejected 3 (2 non-finite, 1 error)"
    )
    assert describe(report(0), 20, {"loss": 2.0}) == "round 0/20  loss 2.0000"


def test_epsilon_comes_with_its_delta_and_the_budget_of_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spent = report(
        2, asked=4, admitted=[0, 1], late=2, epsilon=0.5, privacy="ε ≤ 0.500 at δ 1e-05", budget=8.0
    )
    line = "round 2/9  ε ≤ 0.500 at δ 1e-05, of a budget of 8  replies 2/4  late 2"
    assert describe(spent, 9, {}) == line
    without = dataclasses.replace(spent, budget=None)
    assert "ε ≤ 0.500 at δ 1e-05  replies" in describe(without, 9, {})
    with JsonLines() as shown:
        shown.show(spent, 9)
    with PlainLines() as shown:
        shown.show(spent, 9)
    as_json, plain = capsys.readouterr().out.splitlines()
    assert plain == line
    held = json.loads(as_json)
    assert (held["epsilon"], held["budget"], held["late"]) == (0.5, 8.0, 2)
    assert held["privacy"] == spent.privacy
    text = io.StringIO()
    with LiveLine(Console(file=text, force_terminal=True, width=160)) as shown:
        shown.show(spent, 9)
        assert shown._bar.tasks[0].description == line


def test_plain_lines_are_the_first_the_last_and_one_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.5]  # since boot: the first line must not wait for the first second
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with PlainLines() as shown:
        for server_round in range(8):
            central = {"loss": 1.0} if server_round == 0 else {}
            shown.show(report(server_round, central=central), 7)
            now[0] += 0.4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"round {r}/7" for r in (0, 3, 6, 7)]
    assert all("loss 1.0000" in line for line in lines), "the latest evaluation stays in view"


def test_json_lines_are_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as shown:
        shown.show(report(0, central={"loss": float("nan")}), 2)
        shown.show(report(1, asked=3, admitted=[0, 2]), 2)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0])["central"] == {"loss": None}
    assert json.loads(lines[1])["admitted"] == [0, 2]
    assert len(lines) == 2


def test_the_live_line_of_a_resumed_run_starts_where_it_is() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with LiveLine(console) as shown:
        assert shown._bar.tasks[0].total is None
        shown.show(report(45, asked=4, admitted=[1], central={"loss": 0.5}), 60)
        task = shown._bar.tasks[0]
        assert (task.completed, task.total) == (45, 60)
        assert task.speed is None, "45 rounds were not run just now"
        shown.show(report(46, asked=4, admitted=[1, 2]), 60)
        assert task.completed == 46
        assert "round 46/60  loss 0.5000  replies 2/4" in task.description
    assert "46/60" in text.getvalue()


def test_the_live_line_takes_text_as_it_is() -> None:
    text = io.StringIO()
    with LiveLine(Console(file=text, force_terminal=True, width=120)) as shown:
        shown.show(report(1, rejected={"[bold": 1}, asked=1), 2)
    assert "[bold" in text.getvalue()


def test_the_display_suits_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display(as_json=True), JsonLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert isinstance(display(), PlainLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(display(), LiveLine)
    assert isinstance(display(as_json=True), JsonLines)
