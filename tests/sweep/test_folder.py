"""The sweep folder: what is written down survives a kill at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.errors import ResumeError
from fedsim.sweep import folder as folders
from fedsim.sweep.folder import FAILED, FINISHED, POINTS, STARTED, SweepFolder, digest_of

from .made_up import make_sweep

GRID = [{"axes": {"seed": seed}} for seed in range(3)]


def test_a_new_folder_holds_all_points(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, GRID)
    assert [entry.status for entry in folder.entries] == ["planned"] * 3
    assert [entry.point.axes for entry in folder.entries] == [{"seed": str(s)} for s in range(3)]
    assert folder.head()["axes"] == {"seed": ["0", "1", "2"]}
    assert folder.head()["hash"] == digest_of(folder.entries)
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, GRID)
    folder.record(2, STARTED, run="../r")
    folder.record(2, FAILED, reason="why")
    folder.record(3, STARTED, run="../s")
    again = SweepFolder.open(folder.path)
    assert again.entries == folder.entries
    assert (again.entries[1].status, again.entries[1].run) == (FAILED, "../r")
    assert again.entries[1].reason == "why"
    assert again.run_of(again.entries[2]) == folder.path.parent / "s"
    folder.record(2, STARTED)
    assert folder.entries[1].reason is None and folder.entries[1].run == "../r"


def test_every_length_that_a_kill_may_leave_is_read(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, GRID)
    begun = (folder.path / POINTS).stat().st_size
    folder.record(1, STARTED, run="../r")
    folder.record(1, FINISHED)
    whole = (folder.path / POINTS).read_bytes()
    for length in range(begun, len(whole) + 1):
        (folder.path / POINTS).write_bytes(whole[:length])
        with folder.lock():
            expected = ["planned", STARTED, FINISHED][whole[:length].count(b"\n") - 3]
            assert folder.entries[0].status == expected
            folder.record(2, STARTED, run="../t")  # the torn line does not swallow the next one
        assert SweepFolder.open(folder.path).entries[1].status == STARTED


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"planned"', b'"pla', 1),
        lambda data: data + b'{"point": 9, "status": "started"}\n',
        lambda data: data + b"[]\n",
        lambda data: b"\x00\xff\n" + data,
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:
    folder = make_sweep(tmp_path, GRID)
    path = folder.path / POINTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResumeError, match=r"points\.jsonl is damaged.*--fresh"):
        SweepFolder.open(folder.path)


def test_what_is_no_sweep_folder(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="is not a sweep folder"):
        SweepFolder.open(tmp_path)


def test_the_latest_sweep_of_the_same_points_is_found(tmp_path: Path) -> None:
    root = tmp_path / "sweeps"
    first, second = make_sweep(tmp_path, GRID), make_sweep(tmp_path, GRID)
    other = make_sweep(tmp_path, GRID[:2])
    digest = digest_of(first.entries)
    assert digest == digest_of(first.entries[::-1]) != digest_of(other.entries)
    found = SweepFolder.find(root, "made_up", digest)
    assert found is not None and found.path == second.path
    assert SweepFolder.find(root, "made_up", "0" * 64) is None
    assert SweepFolder.find(tmp_path / "nowhere", "made_up", digest) is None


def test_a_sweep_is_locked_while_a_process_of_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_WAIT_S", 0.1)
    folder = make_sweep(tmp_path, GRID)
    with folder.lock() as lock:
        with pytest.raises(ResumeError, match="still going on"), SweepFolder(folder.path).lock():
            pass
        wait = "import sys; sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", wait], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    with pytest.raises(ResumeError, match="still going on"), folder.lock():
        pass
    child.kill()
    child.wait()
    with folder.lock():
        pass


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, GRID)
    folder.record(1, FAILED, reason="line one\nline two", run="")
    lines = (folder.path / POINTS).read_text().splitlines()
    assert json.loads(lines[-1]) == {
        "point": 1,
        "status": "failed",
        "reason": "line one\nline two",
    }
    assert folder.relative(Path(os.path.relpath(tmp_path / "runs" / "x"))) == "../../../runs/x"
