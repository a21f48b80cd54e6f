"""The run folder: what a run leaves behind, and that resuming it reads nothing that is damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedsim.config import Config, compose
from fedsim.errors import ConfigError, ResumeError
from fedsim.lifecycle import Run
from fedsim.results import MAX_DIFF, STATIC, RunFolder, check_unchanged, checkout, json_line
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke

SMALL = ["device=cpu", "model=linear", "client.epochs=1", "rounds=8", "checkpoint.every=3"]
CHECKPOINT = [
    f"checkpoint/round-000006/{name}"
    for name in ("manifest.json", "model.safetensors", "state.json", "strategy.safetensors")
]


class Untouchable(Simulation):
    """Must not be built: what resuming reads is checked before anything is made of it."""

    @property
    def loop(self) -> Any:
        raise AssertionError("something was loaded")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("runs")
    return compose("quickstart", [*SMALL, "strategy=fedau", f"output.root={root}"])


@pytest.fixture(scope="module")
def whole(config: Config) -> Path:
    """A run of eight rounds that was never stopped."""
    run = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    assert [report.server_round for report in run.start()] == list(range(9))
    return run.folder.path


@pytest.fixture(scope="module")
def _stopped(config: Config) -> Path:
    """The same, killed in round 8: checkpoints of rounds 3 and 6, metrics until round 7."""
    run = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    rounds = run.start()
    for report in rounds:
        if report.server_round == 7:
            break
    rounds.close()
    return run.folder.path


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def resume(path: Path, simulation: type[Simulation] = Simulation, **options: Any) -> list[int]:
    folder = RunFolder.open(path)
    run = Run(simulation=simulation(folder.config()), folder=folder, **options)
    return [report.server_round for report in run.resume()]


# --- what is written -----------------------------------------------------------------------------


def test_a_run_leaves_behind_what_it_should(whole: Path, config: Config) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {*STATIC, ".lock", "metrics.jsonl", "checkpoint", "model.safetensors",
                     "summary.json"}  # fmt: skip
    assert whole.name.endswith(config.hash[:8])
    assert (whole / "overrides.txt").read_text().splitlines() == list(config.overrides)
    environment = json.loads((whole / "env.json").read_text())
    assert environment["seed"] == 0
    assert environment["threads"] == 1
    assert environment["versions"]["torch"] == torch.__version__
    assert "none" in json.loads((whole / "privacy.json").read_text())["statement"]
    partition = json.loads((whole / "partition.json").read_text())
    assert partition["num_clients"] == len(partition["clients"]) == 100
    assert sum(partition["sizes"]) == sum(map(sum, partition["histogram"])) == 1347
    shapes = {k: tuple(t.shape) for k, t in load_file(whole / "model.safetensors").items()}
    assert sorted(shapes.values()) == [(10,), (10, 64)]


def test_what_a_checkout_was_is_told_whole(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    git("init")
    assert checkout(package) == {}, "it lies in a checkout, and is not of it"
    git("add", "package")
    git("commit", "-m", "first")
    told = checkout(package)
    assert (told["changed"], told["diff"], told["untracked"]) == (False, "", [])
    assert len(str(told["commit"])) == 40
    (package / "__init__.py").write_text("x = 2\n")
    (tmp_path / "new.py").write_text("")
    told = checkout(package)
    assert told["changed"]
    assert "\n-x = 1\n+x = 2\n" in str(told["diff"])
    assert told["untracked"] == ["new.py"]
    assert "diff-cut" not in told
    (package / "__init__.py").write_text("x = 3\n" * MAX_DIFF)
    told = checkout(package)
    assert told["diff-cut"]
    assert "untracked-cut" not in told
    assert len(str(told["diff"])) == MAX_DIFF


def test_the_summary_is_of_the_whole_run(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    written = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert summary["status"] == "finished"
    assert summary["server_round"] == summary["last_round"] == 8
    assert summary["smoke"] is False
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in written))
    assert summary["metrics"] == {k: written[-1][k] for k in ("train", "central")}


def test_folders_of_the_same_second_differ(config: Config) -> None:
    paths = {RunFolder.create(config).path for _ in range(5)}
    assert len(paths) == 5


@pytest.mark.parametrize("root", ["/dev/null/runs", "/proc/runs"])
def test_a_folder_that_cannot_be_made_is_named(root: str, config: Config) -> None:
    asked = compose("quickstart", [*SMALL, f"output.root={root}"])
    with pytest.raises(ConfigError, match=f"output.root: .*{root}/quickstart"):
        RunFolder.create(asked)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(ResumeError, match=f"{path} is not a run folder"):
            RunFolder.open(path)


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    report = RoundReport(
        server_round=2,
        central={"loss": math.nan, "accuracy": 0.5},
        per_client={"loss": [1.0, math.inf, -math.inf]},
    )

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads(json_line(report), parse_constant=refuse)
    assert line["central"] == {"loss": None, "accuracy": 0.5}
    assert line["per_client"] == {"loss": [1.0, None, None]}
    assert line["server_round"] == 2


# --- resuming ------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_end(stopped: Path, whole: Path) -> None:
    assert not (stopped / "summary.json").exists()
    assert resume(stopped) == [7, 8]
    assert sha(stopped / "model.safetensors") == sha(whole / "model.safetensors")
    assert lines(stopped) == lines(whole)
    assert json.loads((stopped / "summary.json").read_text())["status"] == "finished"


def test_a_finished_run_is_left_alone(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {file: sha(file) for file in path.rglob("*") if file.is_file()}
    times = {file: file.stat().st_mtime_ns for file in before if file.name != ".lock"}
    assert resume(path) == []
    assert {file: sha(file) for file in path.rglob("*") if file.is_file()} == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_an_end_that_was_not_written_is_written(whole: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "summary.json"):
        path = Path(shutil.copytree(whole, tmp_path / name))
        (path / name).unlink()
        assert resume(path) == []
        assert sha(path / "model.safetensors") == sha(whole / "model.safetensors")
        assert sha(path / "summary.json") == sha(whole / "summary.json")


def test_a_run_that_was_killed_while_it_was_set_up_starts_afresh(
    whole: Path, config: Config
) -> None:
    path = RunFolder.create(config).path
    assert resume(path) == list(range(9))
    assert sha(path / "model.safetensors") == sha(whole / "model.safetensors")
    assert lines(path) == lines(whole)


def test_a_run_that_was_killed_before_its_first_round_resumes(whole: Path, config: Config) -> None:
    run = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    rounds = run.start()
    assert next(rounds).server_round == 0
    rounds.close()
    assert resume(run.folder.path) == list(range(9))
    assert lines(run.folder.path) == lines(whole)


@pytest.mark.parametrize("stop_at", [0, 1, 3, 7, 8])
def test_a_run_that_was_asked_to_stop_keeps_all_its_rounds(
    whole: Path, config: Config, stop_at: int
) -> None:
    asked: list[int] = []
    run = Run(
        simulation=Simulation(config),
        folder=RunFolder.create(config),
        stop=lambda: len(asked) == stop_at,
    )
    for report in run.start():
        asked.append(report.server_round)
    path = run.folder.path
    summary = json.loads((path / "summary.json").read_text())
    assert asked == list(range(stop_at + 1))
    assert summary["server_round"] == stop_at
    assert summary["status"] == ("finished" if stop_at == 8 else "interrupted")
    assert resume(path) == [r for r in range(9) if r > stop_at or (r == 0 and not stop_at)]
    assert sha(path / "model.safetensors") == sha(whole / "model.safetensors")
    assert lines(path) == lines(whole)


def test_an_extended_run_equals_a_longer_one(whole: Path, config: Config, tmp_path: Path) -> None:
    longer = compose("quickstart", [*config.overrides, "rounds=12"])
    run = Run(simulation=Simulation(longer), folder=RunFolder.create(longer))
    list(run.start())
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    assert resume(path, extend=12) == [9, 10, 11, 12]
    assert sha(path / "model.safetensors") == sha(run.folder.path / "model.safetensors")
    assert lines(path) == lines(run.folder.path)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["status"], summary["server_round"]) == ("finished", 12)


def test_an_extended_run_that_was_stopped_remembers_its_aim(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    assert resume(path, extend=12, stop=lambda: True) == [9]
    assert json.loads((path / "summary.json").read_text())["status"] == "interrupted"
    with pytest.raises(ConfigError, match="goes to round 12 already"):
        resume(path, extend=10)
    assert resume(path) == [10, 11, 12]


def test_a_run_is_extended_only_forwards(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"--extend rounds=7: .* goes to round 8 already"):
        resume(path, extend=7)
    assert sha(path / "summary.json") == sha(whole / "summary.json")


def test_the_summary_of_an_earlier_sitting_does_not_outlive_it(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    folder = RunFolder.open(path)
    rounds = Run(simulation=Simulation(folder.config()), folder=folder, extend=20).resume()
    assert next(rounds).server_round == 9
    rounds.close()
    assert not (path / "summary.json").exists()


def test_a_smoke_run_is_not_resumed_as_a_whole_one(config: Config) -> None:
    folder = RunFolder.create(config, smoke=True)
    run = Run(simulation=Simulation(config, Smoke()), folder=folder)
    assert [report.server_round for report in run.start()] == [0, 1]
    assert json.loads((folder.path / "summary.json").read_text())["smoke"] is True
    assert (folder.path / "overrides.txt").read_text().splitlines()[-1] == "--smoke"
    with pytest.raises(ResumeError, match="is a smoke run"):
        resume(folder.path, Untouchable)
    with pytest.raises(ResumeError, match="is a smoke run"):
        resume(RunFolder.create(config, smoke=True).path, Untouchable)


def test_one_process_at_a_time(stopped: Path) -> None:
    rounds = Run(
        simulation=Simulation(RunFolder.open(stopped).config()), folder=RunFolder.open(stopped)
    ).resume()
    assert next(rounds).server_round == 7
    before = sha(stopped / "metrics.jsonl")
    with pytest.raises(ResumeError, match="still going on"):
        resume(stopped, Untouchable)
    assert sha(stopped / "metrics.jsonl") == before
    assert next(rounds).server_round == 8
    rounds.close()
    resume(stopped)


def test_a_checkpoint_of_another_model_is_refused(stopped: Path, config: Config) -> None:
    other = compose("quickstart", [*config.overrides, "model=mlp"])
    run = Run(simulation=Simulation(other), folder=RunFolder.open(stopped))
    with pytest.raises(ResumeError, match="another model"):
        next(run.resume())


def test_a_checkpoint_of_another_strategy_is_refused(stopped: Path, config: Config) -> None:
    other = compose("quickstart", [*config.overrides, "strategy=fedavg"])
    run = Run(simulation=Simulation(other), folder=RunFolder.open(stopped))
    with pytest.raises(ResumeError, match="FedAvg has none"):
        next(run.resume())


def test_the_model_keeps_its_order(config: Config, tmp_path: Path) -> None:
    """Krum adds up norms over all arrays, so that another order gives other sums."""
    asked = compose("quickstart", [*config.overrides, "strategy=krum", "model=mlp", "rounds=4"])
    runs = [Run(simulation=Simulation(asked), folder=RunFolder.create(asked)) for _ in range(2)]
    list(runs[0].start())
    runs[1].stop = lambda: True
    list(runs[1].start())
    simulation = Simulation(asked)
    names = list(simulation.runtime.initial_params())
    folder = RunFolder.open(runs[1].folder.path)
    resumed = Run(simulation=simulation, folder=folder)
    saved = folder.load_checkpoint()
    assert saved is not None
    assert list(resumed._model(dict(sorted(saved.params.items(), reverse=True)))) == names
    list(resumed.resume())
    assert sha(folder.path / "model.safetensors") == sha(runs[0].folder.path / "model.safetensors")


# --- the configuration ---------------------------------------------------------------------------


def test_a_changed_configuration_is_refused_with_the_difference(config: Config) -> None:
    asked = compose("quickstart", [*config.overrides, "client.lr=0.5"])
    with pytest.raises(ResumeError) as caught:
        check_unchanged(config, asked)
    text = str(caught.value)
    assert "\n-  lr: 0.1\n+  lr: 0.5\n" in text
    assert "--extend rounds=N" in text


def test_where_and_how_often_to_write_may_change(config: Config) -> None:
    check_unchanged(config, compose("quickstart", [*config.overrides, "checkpoint.every=1"]))
    check_unchanged(config, compose("quickstart", [*config.overrides, "output.root=elsewhere"]))


def test_an_edited_configuration_is_refused(stopped: Path) -> None:
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(ResumeError, match=r"config\.yaml is not what the run wrote"):
        resume(stopped, Untouchable)


def test_a_file_that_was_edited_during_the_run_is_refused_too(config: Config) -> None:
    run = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    path = run.folder.path / "config.yaml"
    rounds = run.start()
    for report in rounds:
        if report.server_round == 1:
            path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
        if report.server_round == 4:  # a checkpoint later
            break
    rounds.close()
    with pytest.raises(ResumeError, match=r"config\.yaml is not what the run wrote"):
        resume(run.folder.path, Untouchable)


# --- torn files ----------------------------------------------------------------------------------


def damages(data: bytes, positions: list[int]) -> Iterator[bytes]:
    for position in positions:
        torn = bytearray(data)
        torn[position] ^= 1 << (position % 8)
        yield bytes(torn)
        yield data[:position]


@pytest.mark.parametrize("name", [*STATIC, *CHECKPOINT, "metrics.jsonl"])
def test_torn_or_flipped_is_refused_by_name(stopped: Path, name: str) -> None:
    file = stopped / name
    data = file.read_bytes()
    end = len(data)
    if name == "metrics.jsonl":
        state = json.loads((stopped / "checkpoint/round-000006/state.json").read_text())
        assert 0 < state["metrics_bytes"] < end
        end = state["metrics_bytes"]
    some = np.random.default_rng(0).integers(end, size=10).tolist()
    for torn in damages(data, sorted({0, 1, end // 2, end - 1, *some})):
        file.write_bytes(torn)
        with pytest.raises(ResumeError, match=file.name):
            resume(stopped, Untouchable)
    file.unlink()
    with pytest.raises(ResumeError, match=file.name):
        resume(stopped, Untouchable)
    file.write_bytes(data)
    assert resume(stopped) == [7, 8]


@pytest.mark.slow
def test_any_byte_of_the_configuration_counts(stopped: Path) -> None:
    file = stopped / "config.yaml"
    data = file.read_bytes()
    for torn in damages(data, list(range(0, len(data), 11))):
        file.write_bytes(torn)
        with pytest.raises(ResumeError, match=r"config\.yaml"):
            resume(stopped, Untouchable)


@pytest.mark.parametrize("text", ["", "\0", "[1, 2]", "a: [", "\xff\xfe", "a: &a [*a]", "x: 1\n"])
def test_a_damaged_configuration_is_a_resume_error(stopped: Path, text: str) -> None:
    (stopped / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ResumeError, match=r"config\.yaml is damaged, or no longer valid") as caught:
        RunFolder.open(stopped).config()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "rubbish", [b"x", b"\n", b'{"server_round": 8', b"\0" * 5000, b'{"a":1}\n']
)
def test_what_follows_the_checkpoint_in_the_metrics_is_cut(
    stopped: Path, whole: Path, rubbish: bytes
) -> None:
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(rubbish)
    assert resume(stopped) == [7, 8]
    assert lines(stopped) == lines(whole)
    assert sha(stopped / "model.safetensors") == sha(whole / "model.safetensors")


def test_an_older_checkpoint_may_be_damaged(stopped: Path, whole: Path) -> None:
    for file in (stopped / "checkpoint/round-000003").iterdir():
        file.write_bytes(b"x")
    assert resume(stopped) == [7, 8]
    assert sha(stopped / "model.safetensors") == sha(whole / "model.safetensors")


def test_without_the_newest_checkpoint_the_one_before_serves(stopped: Path, whole: Path) -> None:
    shutil.rmtree(stopped / "checkpoint/round-000006")
    assert resume(stopped) == [4, 5, 6, 7, 8]
    assert lines(stopped) == lines(whole)
    assert sha(stopped / "model.safetensors") == sha(whole / "model.safetensors")


def test_leftovers_of_a_kill_go(stopped: Path) -> None:
    (stopped / ".metrics.jsonl.123.tmp").write_text("half")
    (stopped / "checkpoint/.building-round-000009").mkdir()
    resume(stopped)
    assert [path.name for path in stopped.rglob(".*")] == [".lock"]


def test_a_file_that_cannot_be_read_is_named(stopped: Path) -> None:
    os.replace(stopped / "env.json", stopped / "other")
    (stopped / "env.json").mkdir()
    with pytest.raises(ResumeError, match=r"env\.json cannot be read: Is a directory"):
        resume(stopped, Untouchable)
