"""What is wrong is told in one message, with the right exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import catalog
from fedsim.client.work import LocalSGD
from fedsim.rounds import RoundLoop
from tests.commands._calls import TINY, assert_fails, call, runs

WRONG: list[tuple[list[str], list[str]]] = [
    ([], ["one scenario=NAME is needed, got: nothing", "fedsim list scenarios"]),
    (["rounds=3"], ["one scenario=NAME is needed, got: rounds=3"]),
    (["scenario=quickstart", "scenario=million"], ["one scenario=NAME is needed"]),
    (["scenario=quikstart"], ["no scenario 'quikstart'; did you mean 'quickstart'?"]),
    (["scenario="], ["no scenario ''"]),
    (["scenario=./none.yaml"], ["'./none.yaml' does not exist"]),
    (["scenario=quickstart", "roudns=3"], ["unknown key 'roudns'; did you mean 'rounds'?"]),
    (
        ["scenario=quickstart", "client.lrr=3"],
        ["unknown key 'client.lrr'", "mean 'client.lr'"],
    ),
    (["scenario=quickstart", "rounds=fifty"], ["rounds: 'fifty' is not allowed; expected int"]),
    (["scenario=quickstart", "rounds=0"], ["rounds: 0 is out of range", "set on the command line"]),
    (["scenario=quickstart", "client.lr=-1"], ["client.lr: -1", "out of range"]),
    (
        ["scenario=quickstart", "stratgy=fedau"],
        ["unknown key 'stratgy'", "mean 'strategy'"],
    ),
    (
        ["scenario=quickstart", "strategy=fedua"],
        ["no strategy called 'fedua'", "mean 'fedau'"],
    ),
    (
        ["scenario=quickstart", "strategy=average_all", "strategy.cutoff=3"],
        ["unknown key 'strategy.cutoff'", "strategies.average_all.AverageAll"],
    ),
    (["scenario=quickstart", "seed=1,2,3"], ["'seed=1,2,3' asks for several runs"]),
    (["scenario=quickstart", "strategy._target_=os.system"], ["'os.system' is not allowed"]),
    (["scenario=quickstart", "model._target_=torch.load"], ["'torch.load' is not allowed"]),
    (["scenario=quickstart", "x y"], ["cannot read override 'x y'"]),
    (["scenario=quickstart", "output.root=/dev/null/x"], ["output.root", "/dev/null/x"]),
    (["scenario=fedau_fashion"], ["train-images-idx3-ubyte", "FEDSIM_DATA"]),
    (
        ["scenario=quickstart", "evaluation.clients=all"],
        ["evaluation.clients=all", "partition.holdout=0.2"],
    ),
    (["scenario=quickstart", "participation.clients_per_round=101"], ["101 is more than the 100"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_what_is_wrong_is_told_in_one_message(
    root: Path, words: list[str], parts: list[str]
) -> None:
    assert_fails(call("run", *words), 2, *parts)
    assert list(root.iterdir()) == [], "nothing is written"


def test_the_same_holds_for_a_plan(root: Path) -> None:
    for words, parts in WRONG[:8]:
        assert_fails(call("plan", *words), 2, *parts)


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

    monkeypatch.setattr(LocalSGD, "batches", broken)
    result = call("run", *TINY, f"engine={engine}", "--json")
    (folder,) = runs(root)
    assert result.exit_code == 1
    assert "client trouble" in result.stderr
    assert "Traceback" not in result.stderr
    assert "log.txt" in result.stderr
    assert "Traceback (most recent call last)" in (folder / "log.txt").read_text()
