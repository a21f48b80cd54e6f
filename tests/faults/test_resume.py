"""Kill -9 at any moment, then resume: the same model and the same metrics, every time.

Runs are killed in children forked from one process that has imported and built everything (a run
takes a fifth of a second there). `python tests/faults/test_resume.py ROOT` is that process: it
reads jobs as JSON lines from standard input, and answers each with one line.

A child is killed from outside after a delay, or kills itself at its n-th file operation, counted by
an audit hook: that reaches every point between two operations, in the middle of a checkpoint too.
`fsync` counts as an operation, and is left out: a killed process loses nothing that it wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation

HERE = Path(__file__)
SMALL = ["device=cpu", "rounds=30", "checkpoint.every=3", "evaluation.every=5"]
RUNS = {
    "fedau": [
        *("fedau_digits", *SMALL, "model.hidden=[16]", "partition.holdout=0.2"),
        "evaluation.clients=cohort",
    ],
    "fedadam": [*("quickstart", *SMALL, "model=linear", "strategy=fedadam", "client.epochs=1")],
    "short": [*("quickstart", *SMALL, "model=linear", "rounds=4", "checkpoint.every=2")],
}
KILLS = 20
_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


# --- the process that forks ----------------------------------------------------------------------


def serve(root: Path) -> None:
    """Answer jobs `{"run", "folder", "delay", "operation"}` until standard input ends."""
    os.fsync = lambda handle: None
    simulations = {}
    for name, (scenario, *overrides) in RUNS.items():
        config = compose(scenario, [*overrides, f"output.root={root}"])
        simulations[name] = Simulation(config)
        assert simulations[name].loop and simulations[name].label_histogram is not None
        other = Run(simulation=Simulation(config), folder=RunFolder.create(config))
        assert len(list(zip(other.start(), range(7), strict=False)))  # imports what a run needs
    for line in sys.stdin:
        print(json.dumps(_answer(simulations, json.loads(line))), flush=True)


def _answer(simulations: dict[str, Simulation], job: dict[str, Any]) -> dict[str, Any]:
    simulation = simulations[job["run"]]
    path = Path(job["folder"]) if job["folder"] else RunFolder.create(simulation.config).path
    reading, writing = os.pipe()
    started = time.monotonic()
    if (child := os.fork()) == 0:
        os.close(reading)
        _run(simulation, path, job, writing)
    os.close(writing)
    if job["delay"] is not None:
        select.select([reading], [], [], job["delay"])
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return {
        "folder": str(path),
        "killed": os.WIFSIGNALED(status),
        "seconds": time.monotonic() - started,
        **(json.loads(told) if told else {}),
    }


def _run(simulation: Simulation, path: Path, job: dict[str, Any], pipe: int) -> None:
    """Run or resume in this forked child, and end it; never returns."""
    operations = _watch(path, job["operation"])
    error = ""
    try:
        folder = RunFolder.open(path)
        assert folder.config().hash == simulation.config.hash
        for _ in Run(simulation=simulation, folder=folder).resume():
            pass
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    os.write(pipe, json.dumps({"operations": operations, "error": error}).encode())
    os._exit(0)


def _watch(path: Path, deadly: int | None) -> list[str]:
    """List this process's file operations in `path`, and die before the one numbered `deadly`."""
    operations: list[str] = []

    def note(what: str) -> None:
        if len(operations) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        operations.append(what)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS or isinstance(details[0], int):
            return
        name = os.fsdecode(details[0])
        # Removing a folder names its files relative to it; modules are opened by absolute paths.
        if name.startswith(str(path)) or not os.path.isabs(name):
            note(f"{event} {os.path.relpath(name, path) if os.path.isabs(name) else name}")

    sys.addaudithook(hook)
    os.fsync = lambda handle: note("fsync")
    return operations


# --- the tests -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How one process of a run ended."""

    folder: Path
    killed: bool
    seconds: float
    operations: tuple[str, ...] = ()
    error: str = ""


Drive = Callable[..., Outcome]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    root = tmp_path_factory.mktemp("runs")
    with subprocess.Popen(
        [sys.executable, str(HERE), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[2])},
    ) as server:
        assert server.stdin and server.stdout

        def ask(
            run: str,
            folder: Path | None = None,
            *,
            delay: float | None = None,
            operation: int | None = None,
        ) -> Outcome:
            where = None if folder is None else str(folder)
            job = {"run": run, "folder": where, "delay": delay, "operation": operation}
            print(json.dumps(job), file=server.stdin, flush=True)
            answer = json.loads(server.stdout.readline())
            return Outcome(
                folder=Path(answer["folder"]),
                killed=answer["killed"],
                seconds=answer["seconds"],
                operations=tuple(answer.get("operations", ())),
                error=answer.get("error", ""),
            )

        yield ask
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(drive: Drive) -> dict[str, Outcome]:
    """Each run, never killed."""
    outcomes = {name: drive(name) for name in RUNS}
    assert all(not outcome.killed and not outcome.error for outcome in outcomes.values())
    return outcomes


def result(folder: Path) -> dict[str, Any]:
    """Return all that must be equal, and check what must hold for itself."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert summary.pop("seconds") == pytest.approx(sum(line.pop("seconds") for line in lines))
    assert [line["server_round"] for line in lines] == list(range(len(lines)))
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden == {".lock"}, "no temporary file or half a checkpoint is left behind"
    checkpoints = len(list((folder / "checkpoint").iterdir()))
    assert checkpoints in (2, 3), "one too many where the kill came before the last removal"
    model = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"model": model, "summary": summary, "metrics": lines}


def resumed(drive: Drive, run: str, killed: Outcome) -> dict[str, Any]:
    assert killed.killed
    outcome = drive(run, killed.folder)
    assert not outcome.killed and not outcome.error, outcome.error
    return result(outcome.folder)


both = pytest.mark.parametrize("run", ["fedau", pytest.param("fedadam", marks=pytest.mark.slow)])


@both
def test_kill_at_random_moments(drive: Drive, whole: dict[str, Outcome], run: str) -> None:
    expected = result(whole[run].folder)
    draw = np.random.default_rng(list(run.encode()))
    kills = 0
    for _ in range(3 * KILLS):  # some delays end after the run does
        outcome = drive(run, delay=draw.uniform(0, whole[run].seconds))
        if outcome.killed:
            assert resumed(drive, run, outcome) == expected
            kills += 1
        if kills == KILLS:
            return
    raise AssertionError(f"only {kills} runs were killed before they ended")


def test_killed_again_and_again(drive: Drive, whole: dict[str, Outcome]) -> None:
    draw = np.random.default_rng(7)
    folder, kills = None, 0
    for _ in range(40):
        outcome = drive("fedau", folder, delay=draw.uniform(0, whole["fedau"].seconds / 4))
        folder = outcome.folder
        kills += outcome.killed
        if not outcome.killed:
            break
    assert kills >= 3
    outcome = drive("fedau", folder)
    assert not outcome.error
    assert result(outcome.folder) == result(whole["fedau"].folder)


def _points(operations: Sequence[str]) -> dict[str, int]:
    """Name the points in the saving of round 9's checkpoint, the first that removes another."""
    name = "checkpoint/.building-round-000009"
    removed = "checkpoint/.removing-round-000003"
    at = operations.index
    renamed = at(f"os.rename {name}")
    points = {
        "before the checkpoint": at(f"os.mkdir {name}"),
        "before the first file": at(f"open {name}/model.safetensors"),
        "before the first file is on the disk": at(f"open {name}/model.safetensors") + 1,
        "after the first file": at(f"open {name}/strategy.safetensors"),
        "before the manifest": at(f"open {name}/manifest.json"),
        "after the manifest": at(f"open {name}/manifest.json") + 2,
        "before the rename": renamed,
        "after the rename": renamed + 1,
        "between rename and removal": at("os.rename checkpoint/round-000003"),
        "before the removal": at("os.rename checkpoint/round-000003") + 1,
    }
    files = [i for i in range(renamed, len(operations)) if operations[i].startswith("os.remove")]
    points["in the middle of the removal"] = files[1]
    points["before the folder goes"] = at("os.rmdir " + removed)
    return points


@both
def test_kill_at_each_point_of_a_checkpoint(
    drive: Drive, whole: dict[str, Outcome], run: str
) -> None:
    expected = result(whole[run].folder)
    for name, operation in _points(whole[run].operations).items():
        outcome = drive(run, operation=operation)
        assert resumed(drive, run, outcome) == expected, name


@pytest.mark.slow
def test_kill_at_every_operation_of_a_whole_run(drive: Drive, whole: dict[str, Outcome]) -> None:
    expected = result(whole["short"].folder)
    assert len(whole["short"].operations) > 60
    for operation in range(len(whole["short"].operations)):
        outcome = drive("short", operation=operation)
        assert resumed(drive, "short", outcome) == expected, whole["short"].operations[operation]


@pytest.mark.slow
def test_kill_at_every_operation_of_a_resumed_run(
    drive: Drive, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    expected = result(whole["short"].folder)
    at = whole["short"].operations.index("os.mkdir checkpoint/.building-round-000004")
    killed = drive("short", operation=at).folder
    for operation in range(200):
        folder = tmp_path / str(operation)
        shutil.copytree(killed, folder)
        outcome = drive("short", folder, operation=operation)
        if not outcome.killed:
            assert operation > 20 and result(folder) == expected
            return
        assert resumed(drive, "short", outcome) == expected
    raise AssertionError("a resumed run has more operations than that")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
