"""Ctrl-C, once and twice, and a reader that goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.lifecycle import Run
from fedsim.rounds import RoundLoop
from tests.commands._calls import HOME, TINY, call, runs, sha, start

LONG = ["scenario=quickstart", "device=cpu", "client.epochs=1", "rounds=100000",
        "evaluation.every=50", "checkpoint.every=100000", "model.hidden=[8]"]  # fmt: skip


def lines_until(process: subprocess.Popen[str], server_round: int) -> Iterator[int]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)["server_round"]
        if json.loads(line)["server_round"] >= server_round:
            return


def test_ctrl_c_keeps_a_checkpoint_and_resume_ends_the_same(root: Path) -> None:
    words = [*LONG, "rounds=400"]
    with start("run", *words, "--json", cwd=root) as process:
        assert list(lines_until(process, 20))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    (folder,) = runs(root)
    assert process.returncode == 130, err
    last = json.loads(out.splitlines()[-1])["server_round"] if out else 20
    assert 20 <= last < 400
    assert f"interrupted; go on with: fedsim resume {folder.relative_to(root)}\n" in err
    assert "press Ctrl-C again to stop at once" in err
    assert "Traceback" not in err
    assert (folder / "checkpoint" / f"round-{last:06d}").is_dir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert (folder / "report.html").is_file()
    result = call("resume", str(folder))
    assert result.exit_code == 0, result.output
    call("run", *words)
    whole = next(path for path in runs(root) if path != folder)
    assert sha(whole) == sha(folder)


def test_a_second_ctrl_c_stops_at_once(root: Path) -> None:
    slow = [*LONG, "client.epochs=100000"]  # one round would take hours
    with start("run", *slow, "--json", cwd=root) as process:
        assert list(lines_until(process, 0)) == [0]
        process.send_signal(signal.SIGINT)
        assert process.stderr
        while "again" not in process.stderr.readline():
            pass
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    (folder,) = runs(root)
    assert time.monotonic() - asked < 30
    assert process.returncode == 130
    assert "interrupted" in err
    assert f"fedsim resume {folder.relative_to(root)}" in err
    assert "Traceback" not in err


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, times: int) -> None:
    """Press Ctrl-C `times` times when round `at` has been trained."""
    train = RoundLoop.train

    def pressed(loop: RoundLoop, server_round: int, params: Any, **more: Any) -> Any:
        result = train(loop, server_round, params, **more)
        for _ in range(times if server_round == at else 0):
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(RoundLoop, "train", pressed)


def test_ctrl_c_in_the_last_round_is_no_interruption(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, at=3, times=1)
    result = call("run", *TINY)
    assert result.exit_code == 0
    assert "go on with" not in result.stderr


def test_two_presses_keep_the_checkpoint_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, at=3, times=2)
        result = call("run", *TINY, "checkpoint.every=1")
    assert result.exit_code == 130
    (folder,) = runs(root)
    assert result.stderr.splitlines()[-2:] == [
        "interrupted",
        f"go on from the latest checkpoint with: fedsim resume {folder.relative_to(root)}",
    ]
    assert (folder / "checkpoint" / "round-000002").is_dir()
    assert call("resume", str(folder)).exit_code == 0
    assert call("run", *TINY).exit_code == 0
    assert len({sha(path) for path in runs(root)}) == 1


def test_a_resumed_and_extended_run_can_be_interrupted_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("run", *TINY)
    (folder,) = runs(root)
    with monkeypatch.context() as patch:
        interrupted(patch, at=4, times=1)
        assert call("resume", str(folder), "--extend", "rounds=6").exit_code == 130
    result = call("resume", str(folder))  # the command that the message gives, word for word
    assert result.exit_code == 0
    assert "round 6/6" in result.stdout


def test_a_reader_that_goes_away_ends_the_run_without_a_traceback(root: Path) -> None:
    with start("run", *LONG, "--json", cwd=root) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["server_round"] == 0
        process.stdout.close()
        assert process.stderr
        err = process.stderr.read()
        process.wait(60)
    assert process.returncode == 1
    (folder,) = runs(root)
    assert err.splitlines() == [
        "error: standard output was closed",
        f"go on from the latest checkpoint with: fedsim resume {folder.relative_to(root)}",
    ]


@pytest.mark.parametrize("words", [["list"], ["list", "--json"]])
def test_a_listing_into_a_closed_pipe_is_quiet(words: Sequence[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.cli", *words],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "error: standard output was closed\n"


def test_ctrl_c_while_a_scenario_is_built(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "start", pressed)
    result = call("run", *TINY)
    assert result.exit_code == 130
    monkeypatch.setattr("fedsim.config.compose", pressed)
    result = call("run", *TINY)
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"
