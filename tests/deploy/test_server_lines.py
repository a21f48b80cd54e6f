"""What a deployed run says in its log, and what is read back."""

import json
import math

import pytest

from fedsim.deploy import server_lines
from fedsim.progress import describe
from fedsim.rounds import RoundReport

REPORT = RoundReport(
    server_round=3,
    asked=4,
    admitted=[0, 2, 3],
    rejected={"error": 1},
    details=["reply of client 1 rejected (error): two\nlines, üñï"],
    train={"train-loss": 0.5, "num-examples": 30.0},
    clients={"accuracy": 0.25},
    central={"loss": 1.5},
    per_client={"client-index": [0.0, 2.0, 3.0]},
    seconds=1.25,
)


def said(capsys: pytest.CaptureFixture[str], report: RoundReport) -> dict[str, object]:
    server_lines.LogLines().show(report, 9)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\n")
    told = server_lines.read(out)
    assert told is not None
    return told


def test_a_report_is_read_as_it_was_but_for_columns(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, REPORT)
    assert told["last_round"] == 9
    read = server_lines.report(told)
    assert read == RoundReport(**{**vars(REPORT), "per_client": {}})


def test_a_loss_that_is_not_finite_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bad = RoundReport(server_round=1, central={"loss": math.inf}, train={"train-loss": math.nan})
    report = server_lines.report(said(capsys, bad))
    assert math.isnan(report.central["loss"])
    assert "loss nan" in describe(report, 2, report.central)


def test_an_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    server_lines.write({"exit": 4, "message": "two\nlines", "run": ""})
    assert server_lines.read(capsys.readouterr().out) == {
        "exit": 4,
        "message": "two\nlines",
        "run": "",
    }


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "\n",
            "INFO : starting",
            "fedsim",
            "fedsim:",
            "fedsim: ",
            'fedsim: {"exit": 0',
            "[1]",
        ),
        *("fedsim: [1]", "fedsim: 3", "fedsim: null", 'x fedsim: {"exit": 0}', '{"exit": 0}'),
    ],
)
def test_others_lines_are_passed_over(line: str) -> None:
    assert server_lines.read(line) is None


def test_a_line_may_end_as_it_likes() -> None:
    line = "fedsim: " + json.dumps({"exit": 0})
    for end in ("", "\n", "\r\n", "  \n"):
        assert server_lines.read(line + end) == {"exit": 0}
