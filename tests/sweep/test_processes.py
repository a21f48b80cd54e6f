"""Processes that begin anew; forks are what whole sweeps run in, see `test_sweep`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedsim.sweep import processes as places
from fedsim.sweep.point import Job, run_point
from fedsim.sweep.processes import Forks, Processes, processes


def job(root: Path, scenario: str, **other: str) -> Job:
    known = {"hash": "0" * 64, "run": str(root / "run"), "stop": str(root / "stop"), **other}
    return Job(scenario=scenario, overrides=("seed=1",), **known)


def test_a_job_survives_the_way_to_its_process(tmp_path: Path) -> None:
    made = job(tmp_path, "a b\n'ü")
    assert Job.from_json(made.to_json().encode()) == made
    assert "\n" not in made.to_json()


def test_a_process_fails_with_a_reason_and_another_is_killed(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT)
    ended = []
    with Processes(2, lock) as pool:
        pool.start(1, job(tmp_path, "quikstart"), tmp_path / "logs" / "1.txt")
        pool.start(2, job(tmp_path, "quickstart"), tmp_path / "logs" / "2.txt")
        assert isinstance(pool, Processes)
        ((other, _),) = [pool._running[2]]
        other.kill()
        until = time.monotonic() + 60
        while len(ended) < 2 and time.monotonic() < until:
            ended += list(pool.ended())
            time.sleep(0.02)
    os.close(lock)
    found = {number: (code, reason) for number, code, reason in ended}
    assert found[1][0] == 2 and "did you mean 'quickstart'?" in found[1][1]
    assert found[2] == (
        -9,
        "its process was killed by SIGKILL; is the memory too small for --jobs?",
    )
    assert pool._running == {}
    assert not (tmp_path / "run").exists()


def test_a_process_with_threads_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads, kind in ((["1"], Forks), (["1", "2"], Processes)):
        monkeypatch.setattr(places.os, "listdir", lambda path, found=threads: found)
        with processes(2, 0) as pool:
            assert type(pool) is kind and pool.slots == 2


def test_a_point_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    code, why = run_point(job(tmp_path, "quickstart"))
    assert code == 5 and "was changed while the sweep went on" in why
    (tmp_path / "stop").touch()
    assert run_point(job(tmp_path, "quickstart"))[0] == 130
    assert not (tmp_path / "run").exists()
