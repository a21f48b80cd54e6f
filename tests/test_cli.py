"""The command line: what it answers, on which stream, and with which exit code."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import fedsim
from fedsim import catalog
from fedsim.cli import app
from fedsim.client.work import LocalSGD
from fedsim.rounds import RoundLoop
from fedsim.run import Run

HOME = Path(__file__).parents[1]
TINY = ["scenario=quickstart", "device=cpu", "client.epochs=1", "rounds=3", "model.hidden=[8]"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test: runs go to `results/runs` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    return tmp_path


@pytest.fixture
def real_report() -> None:
    """For the tests that want one."""


@pytest.fixture(autouse=True)
def _cheap_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report takes longer than these runs do."""

    def write_report(run: Path) -> Path:
        (run / "report.html").write_text("a report")
        return run / "report.html"

    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("fedsim.report.html.write_report", write_report)


def call(*words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(words))


def runs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("results/runs/*/*/config.yaml"))


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def assert_fails(result: Result, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr, result.stderr


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fedsim.cli", *words],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- what costs nothing --------------------------------------------------------------------------

LIGHT = """
import json, sys, time
from typer.testing import CliRunner
from fedsim.cli import app
answers = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]
heavy = [name for name in ("torch", "flwr", "hydra", "numpy", "sklearn") if name in sys.modules]
answers = [[answer.exit_code, answer.stdout] for answer in answers]
print(json.dumps({"answers": answers, "heavy": heavy, "seconds": time.process_time()}))
"""


def test_help_version_and_list_are_quick_and_import_nothing_heavy() -> None:
    words: list[list[str]] = [["--help"], ["--version"], ["list"], ["run", "--help"], []]
    words += [["deploy", "--help"], ["sweep", "--help"]]
    words += [["list", group] for group in ("scenarios", "strategies", *catalog.GROUPS, "audit")]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(words)],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    assert told["seconds"] < 1.0
    codes = [code for code, _ in told["answers"]]
    assert codes == [0] * 4 + [2] + [0] * (len(words) - 5)
    for option in ("--local", "--to", "--write", "--host", "--insecure", "--resume", "--smoke"):
        assert option in told["answers"][5][1]
    for option in ("--jobs", "--ray", "--resume", "--name", "--fresh", "--json"):
        assert option in told["answers"][6][1]
    text = [answer for _, answer in told["answers"]]
    for command in ("run", "resume", "sweep", "plan", "deploy", "list", "report"):
        assert command in text[0]
    assert text[1] == f"{fedsim.__version__}\n"
    for entry in [*catalog.scenarios(), *catalog.entries("strategy")]:
        assert entry.name in text[2]
        assert entry.summary in text[2]
    assert "--smoke" in text[3]


def test_list_as_json() -> None:
    listed = json.loads(call("list", "--json").stdout)
    assert list(listed) == ["scenarios", *catalog.GROUPS, *catalog.APART]
    assert "quickstart" in listed["scenarios"]
    assert listed["engine"]["in_process"].startswith("The sequential reference")


def test_list_of_keys() -> None:
    result = call("list", "scenario=quickstart", "--keys")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "int in [1, 4294967296)" in lines["rounds"]
    assert "200" in lines["rounds"]
    assert "client.lr" in lines
    assert "partition.alpha" in lines
    keys = json.loads(call("list", "scenario=quickstart", "strategy=fedau", "--json").stdout)
    assert {"path", "type", "default", "value", "description"} == set(keys[0])
    assert any(key["path"] == "strategy.cutoff" for key in keys)


def test_list_of_what_there_is_not() -> None:
    assert_fails(call("list", "strategie"), 2, "no group 'strategie'", "did you mean 'strategy'?")
    assert_fails(call("list", "--keys"), 2, "one scenario=NAME is needed")


# --- plan and run --------------------------------------------------------------------------------


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


# --- what is wrong -------------------------------------------------------------------------------

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


# --- resume --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert call("run", *TINY, f"output.root={root}").exit_code == 0
    (folder,) = (path.parent for path in root.rglob("config.yaml"))
    return folder


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


# --- deploy --------------------------------------------------------------------------------------


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Notes what `fedsim deploy` would start, and starts nothing."""
    started: list[object] = []

    def start(sitting: object, nodes: int, **settings: object) -> None:
        started.append((sitting, nodes, settings["secure"]))

    def refused(*words: object, **_: object) -> None:
        raise AssertionError(f"started {words}")

    monkeypatch.setattr("fedsim.deploy.front.run_locally", start)
    monkeypatch.setattr("fedsim.deploy.local.subprocess.Popen", refused)
    monkeypatch.setattr("fedsim.deploy.submission.subprocess.run", refused)
    return started


DEPLOY: list[tuple[list[str], list[str]]] = [
    ([], ["one of --local N, --to NAME and --write DIR says where"]),
    (["--local", "3", "--to", "x"], ["give one"]),
    (["--local", "3", "--write", "x"], ["give one"]),
    (["--to", "x", "--write", "x"], ["give one"]),
    (["--local", "3", "client.lrr=1"], ["unknown key 'client.lrr'", "mean 'client.lr'"]),
    (["--local", "3", "rounds=fifty"], ["rounds: 'fifty' is not allowed"]),
    (["--local", "3", "evaluation.clients=all"], ["partition.holdout=0.2"]),
    (["--local", "3", "engine=cohort"], ["engine=deployment alone"]),
    (["--local", "3", "partition.num_clients=4"], ["there are 3 devices"]),
    (["--local", "3", "participation.clients_per_round=4"], ["there are 3 devices"]),
    (["--to", "x", "client.lrr=1"], ["unknown key 'client.lrr'"]),
    (["--write", "x", "client.lrr=1"], ["unknown key 'client.lrr'"]),
    (["--local", "3", "--host", "10.0.0.1"], ["--host says nothing here"]),
    (["--to", "x", "--insecure"], ["--secure/--insecure says nothing here"]),
    (["--local", "3", "--devices", "3"], ["--devices says nothing here"]),
    (["--local", "3", "--extend", "rounds=9"], ["--extend says nothing here"]),
    (["--write", "x", "--smoke"], ["--smoke says nothing here"]),
    (["--write", "x", "--host", "10.0.0.1", "--insecure"], ["10.0.0.1 is not loopback"]),
    (["--local", "3", "--resume", "x"], ["the run's folder says the scenario; leave it out"]),
]


@pytest.mark.parametrize(("words", "parts"), DEPLOY, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_be_deployed_is_told_and_nothing_is_started(
    root: Path, nothing_starts: list[object], words: list[str], parts: list[str]
) -> None:
    assert_fails(call("deploy", "scenario=quickstart", *words), 2, *parts)
    assert nothing_starts == []
    assert list(root.iterdir()) == [], "nothing is written"


def test_a_scenario_is_fitted_to_the_devices_here(root: Path, nothing_starts: list[Any]) -> None:
    result = call("deploy", *TINY, "--local", "3")
    assert result.exit_code == 0, result.output
    ((sitting, nodes, secure),) = nothing_starts
    (folder,) = runs(root)
    assert (nodes, secure, sitting.folder, sitting.extend) == (3, False, str(folder), 0)
    assert sitting.config.values["partition"]["num_clients"] == 3
    assert sitting.config.values["participation"]["clients_per_round"] == 3
    assert sitting.how_to_resume == f"fedsim deploy --resume {folder} --local 3"
    path = folder.relative_to(root)
    assert result.stdout.splitlines() == [f"run:     {path}", f"report:  {path}/report.html"]

    words = [str(folder), "--local", "3", "--extend", "rounds=9"]
    assert call("deploy", "--resume", *words).exit_code == 0
    assert_fails(call("deploy", "--resume", str(folder), "--local", "2"), 2, "give --local 3")
    (_, (again, _, _)) = nothing_starts
    assert (again.config, again.folder, again.extend) == (sitting.config, str(folder), 9)


def test_deploy_resume_of_a_simulated_run(finished: Path, nothing_starts: list[object]) -> None:
    result = call("deploy", "--resume", str(finished), "--local", "3")
    assert_fails(result, 5, "was not deployed", f"fedsim resume {finished}")
    assert nothing_starts == []


def test_resume_of_a_deployed_run(root: Path, nothing_starts: list[object]) -> None:
    assert call("deploy", *TINY, "--local", "3").exit_code == 0
    (folder,) = runs(root)
    before = sorted(folder.iterdir())
    words = f"was deployed; go on with: fedsim deploy --resume {folder} --local N"
    assert_fails(call("resume", str(folder)), 5, words)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["run", "plan"])
def test_real_devices_are_not_simulated(root: Path, command: str) -> None:
    result = call(command, *TINY, "engine=deployment")
    parts = [
        "fedsim deploy scenario=NAME --local 3",
        "engine=cohort",
        "the same messages and bytes",
    ]
    assert_fails(result, 2, *parts)
    assert list(root.iterdir()) == []


def test_what_real_hosts_need_is_written(root: Path, nothing_starts: list[object]) -> None:
    words = ["--write", "there", "--host", "fl.example.org", "--devices", "2"]
    result = call("deploy", *TINY, *words)
    assert result.exit_code == 0, result.output
    assert result.stdout == "written: there\nnext:    there/README.md\n"
    assert sorted(path.name for path in (root / "there").iterdir()) == [
        *("README.md", "device-0", "device-1", "operator", "superlink")
    ]
    assert nothing_starts == []


# --- being stopped -------------------------------------------------------------------------------

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
