"""Exit codes, `--debug` and internal errors; tests/golden/errors.txt has what people mistype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import catalog
from fedsim.client.work import LocalSGD
from fedsim.rounds import RoundLoop
from tests.commands._calls import TINY, assert_fails, call, runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_absent(root: Path) -> None:
    assert_fails(call("run", *TINY, "device=cuda"), 2, "device: 'cuda' is not there", "auto or cpu")


@pytest.mark.parametrize("words", [["nonsense"], ["run", "--nonsense"], ["resume"]])
def test_usage_errors(words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback_and_keeps_the_exit_code(root: Path) -> None:
    result = call("run", "scenario=quikstart", "--debug")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.rstrip().endswith("(or give the path of a .yaml file)")


def test_an_internal_error_is_one_line_and_in_the_log(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(RoundLoop, "train", broken)
    result = call("run", *TINY, "--json")
    (folder,) = runs(root)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: internal: KeyError: ")
    assert f"The traceback is in {folder.relative_to(root)}/log.txt" in result.stderr
    log = (folder / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert log.rstrip().endswith(r"KeyError: 'first line\nsecond line'")
    assert "Traceback" in call("run", *TINY, "--debug").stderr
    assert not (folder / "summary.json").exists()


def test_an_internal_error_without_a_run_says_how_to_see_more(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(catalog, "scenarios", broken)
    result = call("list")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: internal: RuntimeError: no such luck (Add --debug to see where it happened)\n"
    )


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_a_failing_client_is_told_without_its_traceback(
    root: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("client trouble")

    monkeypatch.setattr(LocalSGD, "drawn", broken)
    result = call("run", *TINY, f"engine={engine}", "--json")
    (folder,) = runs(root)
    assert result.exit_code == 1
    assert "client trouble" in result.stderr
    assert "Traceback" not in result.stderr
    assert "log.txt" in result.stderr
    assert "Traceback (most recent call last)" in (folder / "log.txt").read_text()
