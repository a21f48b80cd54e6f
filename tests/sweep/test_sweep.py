"""Whole sweeps, in processes of their own: killed, interrupted, and compared with plain runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.sweep.folder import SweepFolder

HOME = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HOME)}
TINY = ["scenario=quickstart", "partition.num_clients=10", "model.hidden=[8]", "client.epochs=1"]


def only(root: Path) -> SweepFolder:
    (head,) = root.glob("results/sweeps/*/*/sweep.yaml")
    return SweepFolder.open(head.parent)


def sha(run: Path | None) -> str:
    assert run is not None
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def plain_run(root: Path, *overrides: str) -> str:
    """Run a point as a user would, without a sweep; return the digest of its model."""
    words = ["run", "scenario=quickstart", *overrides, f"output.root={root}"]
    assert CliRunner().invoke(app, words).exit_code == 0
    (config,) = root.glob("*/*/config.yaml")
    return sha(config.parent)


@pytest.fixture(autouse=True)
def _cheap_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.report.html.write_report", lambda run: run / "report.html")


def test_points_are_plain_runs_and_what_fails_is_told(tmp_path: Path) -> None:
    words = [*TINY, "rounds=2", "participation.clients_per_round=5,11"]
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.cli", "sweep", *words, "--jobs", "2"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    sweep = only(tmp_path)
    good, bad = sweep.entries
    run = sweep.run_of(good)
    assert run is not None and run.parent == tmp_path / "results" / "runs" / "quickstart"
    assert sha(run) == plain_run(tmp_path / "plain", *good.point.overrides)
    command = json.loads((run / "env.json").read_text())["command"]
    assert command == ["fedsim", "run", TINY[0], *good.point.overrides]
    assert (run / "report.html").is_file() and (run / "log.txt").read_text() == ""
    assert "1 of 2 points failed:" in done.stderr
    assert "clients_per_round=11: " in done.stderr and "11 is more than the 10" in done.stderr
    assert bad.point.command in done.stderr
    lost = sweep.run_of(bad)
    assert lost is not None and not lost.exists(), "it is built and checked before that"
    told = json.loads((sweep.path / "summary.json").read_text())
    assert (told["done"], len(told["failed"])) == (1, 1)
    report = CliRunner().invoke(app, ["report", str(sweep.path)])
    assert report.stdout == f"{sweep.path}/report.html\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_three_kills_and_a_ctrl_c_lose_no_point_and_run_none_twice(tmp_path: Path) -> None:
    words = [*TINY, "rounds=16", "checkpoint.every=3", "seed=0,1,2"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_thrice.py")), *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    sittings = json.loads(done.stderr.splitlines()[-1])
    assert [sitting["end"] for sitting in sittings] == [-9, 130, -9, -9, 0]
    assert [sitting["orphans"] for sitting in sittings] == [0] * 5
    assert sittings[2]["rounds"] < 3 * 17, "the kills came in time"
    sweep = only(tmp_path)
    assert [entry.status for entry in sweep.entries] == ["finished"] * 3
    runs = sorted((tmp_path / "results" / "runs" / "quickstart").iterdir())
    assert runs == sorted(run for entry in sweep.entries if (run := sweep.run_of(entry)))
    events = [json.loads(line) for line in (sweep.path / "points.jsonl").read_text().splitlines()]
    assert Counter(e["point"] for e in events if e["status"] == "finished") == {1: 1, 2: 1, 3: 1}
    assert len({event["run"] for event in events if "run" in event}) == 3
    for entry in sweep.entries:
        run = sweep.run_of(entry)
        assert run is not None
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["server_round"] for line in lines] == list(range(17))
    last = sweep.entries[1]
    assert sha(sweep.run_of(last)) == plain_run(tmp_path / "plain", *last.point.overrides)
