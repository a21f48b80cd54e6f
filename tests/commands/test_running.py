"""`fedsim run`, `plan` and `report`: what they answer, and on which stream."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.commands._calls import TINY, assert_fails, call, runs, sha


def test_plan(root: Path) -> None:
    result = call("plan", *TINY)
    assert result.exit_code == 0
    for part in ("clients      100, 10.0 a round, 3 rounds", "610 parameters", "privacy      none"):
        assert part in result.stdout
    cost = json.loads(call("plan", *TINY, "--json").stdout)
    assert cost["messages"] == 60
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("real_report")
def test_run_says_what_it_did_and_where(root: Path) -> None:
    result = call("run", *TINY)
    assert result.exit_code == 0, result.output
    (folder,) = runs(root)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("round 0/3  loss ")
    assert lines[-4].startswith("round 3/3  loss ")
    assert lines[-3].startswith("privacy: none")
    assert lines[-2] == f"run:     {folder.relative_to(root)}"
    assert lines[-1] == f"report:  {folder.relative_to(root)}/report.html"
    assert (folder / "report.html").stat().st_size > 1000
    assert (folder / "log.txt").read_text() == ""
    assert result.stderr == ""


def test_run_as_json_prints_json_and_nothing_else(root: Path) -> None:
    result = call("run", *TINY, "--json")
    assert [json.loads(line)["server_round"] for line in result.stdout.splitlines()] == [0, 1, 2, 3]
    assert result.stderr == ""
    (folder,) = runs(root)
    written = (folder / "metrics.jsonl").read_text()
    assert written == result.stdout


def test_a_smoke_run_is_short_and_cannot_be_resumed(root: Path) -> None:
    assert call("run", *TINY, "rounds=500", "--smoke").exit_code == 0
    (folder,) = runs(root)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert_fails(call("resume", str(folder)), 5, "is a smoke run", "fedsim run scenario=")


def test_a_run_leaves_no_handler_behind(root: Path) -> None:
    logger = logging.getLogger("fedsim")
    before = list(logger.handlers), logger.propagate
    call("run", *TINY)
    assert (list(logger.handlers), logger.propagate) == before


def test_the_written_configuration_is_a_scenario(root: Path) -> None:
    assert call("run", *TINY).exit_code == 0
    (first,) = runs(root)
    assert call("run", f"scenario={first}/config.yaml").exit_code == 0
    assert len({sha(folder) for folder in runs(root)}) == 1
    assert len(runs(root)) == 2


@pytest.mark.usefixtures("real_report")
def test_report_is_written_again(root: Path) -> None:
    call("run", *TINY)
    (folder,) = runs(root)
    (folder / "report.html").unlink()
    assert call("report", str(folder)).stdout == f"{folder}/report.html\n"
    assert (folder / "report.html").is_file()
    assert_fails(call("report", str(root)), 5, "is not a run folder")


@pytest.mark.usefixtures("real_report")
def test_several_runs_are_put_beside_each_other(root: Path) -> None:
    for seed in (0, 1):
        assert call("run", *TINY, f"seed={seed}").exit_code == 0
    told = json.loads(call("report", *map(str, runs(root)), "--json").stdout)
    assert told["report"].startswith("results/reports/2-runs_")
    assert "quickstart" in (root / told["report"]).read_text()
    out = call("report", *map(str, runs(root)), "--out", "here")
    assert out.stdout == "here/report.html\n"
    assert (root / "here" / "results.tex").is_file()
    assert_fails(call("report", str(runs(root)[0]), "--out", "x"), 2, "Give several, or --compare")
