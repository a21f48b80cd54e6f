"""What costs nothing: help, version, listings."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import fedsim
from fedsim import catalog
from tests.commands._calls import HOME, assert_fails, call

LIGHT = """
import json, sys, time
from typer.testing import CliRunner
from fedsim.cli import app
answers = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]
typed = "fedsim run scenario=quickstart strategy.w"
variables = {"_FEDSIM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed}
answers += [CliRunner().invoke(app, [], env=variables, prog_name="fedsim")]
names = ("torch", "flwr", "hydra", "numpy", "sklearn", "optuna")
heavy = [name for name in names if name in sys.modules]
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
    assert codes == [0] * 4 + [2] + [0] * (len(words) - 4)
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
    assert "strategy.weighting=uniform" in text[-1]


def test_list_as_json() -> None:
    listed = json.loads(call("list", "--json").stdout)
    assert list(listed) == ["scenarios", *catalog.GROUPS, *catalog.APART]
    assert "quickstart" in listed["scenarios"]
    assert listed["engine"]["in_process"]["summary"].startswith("The sequential reference")
    assert listed["strategy"]["fedau"]["paper"] == "Wang & Ji 2024, arXiv:2306.03401"
    assert listed["privacy"]["user_dp"]["trust"].startswith("the server")
    assert "trusted: the server" in call("list", "privacy").stdout


def test_list_of_keys() -> None:
    result = call("list", "scenario=quickstart", "--keys")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "int in [1, 4294967296)" in lines["rounds"]
    assert "200" in lines["rounds"]
    assert "client.lr" in lines
    assert lines["rounds"].endswith("; default 50")
    assert "default" not in lines["seed"], "only where it differs"
    assert "partition.alpha" in lines
    keys = json.loads(call("list", "scenario=quickstart", "strategy=fedau", "--json").stdout)
    assert {"path", "type", "default", "value", "description"} == set(keys[0])
    assert any(key["path"] == "strategy.cutoff" for key in keys)


def test_list_of_what_there_is_not() -> None:
    assert_fails(call("list", "strategie"), 2, "no group 'strategie'", "did you mean 'strategy'?")
    assert_fails(call("list", "--keys"), 2, "one scenario=NAME is needed")
