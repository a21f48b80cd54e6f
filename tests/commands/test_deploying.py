"""`fedsim deploy`: what it refuses, and what it would start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands._calls import TINY, assert_fails, call, runs

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
    told = call("deploy", *TINY, *words[:1], "elsewhere", *words[2:], "--json").stdout
    assert json.loads(told) == {"written": "elsewhere", "next": "elsewhere/README.md"}
