"""`fedsim resume`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands._calls import TINY, assert_fails, call, runs, sha


def test_a_finished_run_has_nothing_to_do(finished: Path) -> None:
    before = sha(finished), (finished / "summary.json").read_bytes()
    result = call("resume", str(finished))
    assert result.exit_code == 0
    assert "nothing to do: the run has finished" in result.stdout
    assert "--extend rounds=N" in result.stdout
    assert (sha(finished), (finished / "summary.json").read_bytes()) == before
    quiet = call("resume", str(finished), "--json")
    assert quiet.stdout == ""
    assert "nothing to do" in quiet.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["client.lr=0.5"], ["\n-  lr: 0.1\n+  lr: 0.5\n", "start a new run"]),
        (["rounds=9"], ["\n-rounds: 3\n+rounds: 9\n", "--extend rounds=N"]),
        (["strategy=fedau"], ["strategy=fedau: a run keeps its parts"]),
    ],
)
def test_resume_refuses_another_configuration(
    finished: Path, words: list[str], parts: list[str]
) -> None:
    assert_fails(call("resume", str(finished), *words), 5, *parts)


def test_resume_allows_what_leaves_the_result_alone(finished: Path) -> None:
    assert call("resume", str(finished), "checkpoint.every=1", "client.lr=0.1").exit_code == 0
    assert_fails(call("resume", str(finished), "client.lrr=1"), 2, "unknown key 'client.lrr'")


@pytest.mark.parametrize("extend", ["rounds=2", "rounds=0", "rounds=-1", "rounds=²", "rounds=x",
                                    "rounds=", "seed=4", "4", "rounds=4294967296"])  # fmt: skip
def test_extend_takes_a_larger_number_of_rounds(finished: Path, extend: str) -> None:
    before = (finished / "summary.json").read_bytes()
    assert_fails(call("resume", str(finished), "--extend", extend), 2, f"--extend {extend}")
    assert (finished / "summary.json").read_bytes() == before


def test_extend_runs_on(finished: Path, root: Path) -> None:
    assert call("run", *TINY, "rounds=5").exit_code == 0
    (longer,) = runs(root)
    assert call("run", *TINY, f"output.root={root}/other").exit_code == 0
    (folder,) = (path.parent for path in (root / "other").rglob("config.yaml"))
    result = call("resume", str(folder), "--extend", "rounds=5")
    assert result.exit_code == 0, result.output
    assert "round 5/5" in result.stdout
    assert sha(folder) == sha(longer)


def test_resume_of_what_is_no_run(root: Path) -> None:
    assert_fails(call("resume", "nowhere"), 5, "nowhere is not a run folder: it has no config.yaml")


def test_a_damaged_folder_is_told_without_a_traceback(root: Path) -> None:
    call("run", *TINY)
    (folder,) = runs(root)
    (folder / "config.yaml").write_bytes(b"\xff\0[")
    assert_fails(call("resume", str(folder)), 5, "config.yaml is damaged")
