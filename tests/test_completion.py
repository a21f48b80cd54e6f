"""Shell completion: what it offers, and that it says the same as the configuration itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import catalog
from fedsim.completion import candidates, fields, keys, rejoin
from fedsim.config import compose
from fedsim.config.keys import keys as keys_of
from fedsim.config.sources import parse_yaml
from fedsim.config.targets import OWN, fields_of, locate

HOME = Path(__file__).parents[1]
PARTS = [entry for group in (*catalog.GROUPS, *catalog.APART) for entry in catalog.entries(group)]
QUICK = ["scenario=quickstart"]


def words(begun: str, given: list[str] = QUICK) -> list[str]:
    return [word for word, _ in candidates(given, begun)]


def test_the_fields_of_every_part_are_those_of_its_class() -> None:
    for entry in PARTS:
        target = parse_yaml(entry.path.read_text(), entry.name)["_target_"]
        if target.startswith(OWN):
            assert list(fields(target)) == list(fields_of(locate(target, ()))), target


@pytest.mark.parametrize("scenario", ["quickstart", "fedld_digits", "dp_fashion_users"])
def test_the_keys_of_a_scenario_are_those_that_it_has(scenario: str) -> None:
    there = {key.path for key in keys_of(compose(scenario))}
    inside_parts = {path for path in there if path.count(".") > 1}  # these are not offered
    assert set(keys({"scenario": scenario})) == there - inside_parts


def test_a_chosen_part_brings_its_keys() -> None:
    assert "strategy.cutoff" not in keys({"scenario": "quickstart"})
    assert keys({"scenario": "quickstart", "strategy": "fedau"})["strategy.cutoff"] == ["50"]


def test_what_is_offered() -> None:
    names = [entry.name for entry in catalog.scenarios()]
    assert words("", []) == words("sc", []) == [f"scenario={name}" for name in names]
    assert words("scenario=quick", []) == ["scenario=quickstart"]
    assert words("strategy=feda", [*QUICK]) == [
        *("strategy=fedadagrad", "strategy=fedadam", "strategy=fedasync", "strategy=fedat"),
        *("strategy=fedau", "strategy=fedau_paper", "strategy=fedavg"),
        "strategy=fedavg_autoencoder",
        "strategy=fedavgm",
    ]
    assert words("evaluation.cl") == [f"evaluation.clients={c}" for c in ("none", "cohort", "all")]
    assert words("rou") == ["rounds=200"], "a number is offered as the scenario has it"
    assert {"partition=", "partition.alpha=", "participation="} <= set(words("par"))
    assert words("client.epochs=") == ["client.epochs=5"]
    assert words("nonsense") == []
    assert words("", ["scenario=no_such"]) != []
    text = dict(candidates([], "scenario=million"))["scenario=million"]
    assert text == next(entry.summary for entry in catalog.scenarios() if entry.name == "million")


def test_a_scenario_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - base\n  - override /strategy: fedau\n  - _self_\nrounds: 7\n")
    assert words("rounds", [f"scenario={file}"]) == ["rounds=7"]
    assert words("strategy.cut", [f"scenario={file}"]) == ["strategy.cutoff=50"]


def test_words_that_a_shell_split_at_the_equals_sign() -> None:
    assert rejoin(["scenario", "=", "quickstart"], "rou") == (QUICK, "rou")
    assert rejoin(["scenario"], "=") == ([], "scenario=")
    assert rejoin(QUICK, "strategy=fed") == (QUICK, "strategy=fed")


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="there is no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    fedsim = tmp_path / "fedsim"
    fedsim.write_text(f"#!{sys.executable}\nfrom fedsim.cli import app\napp(prog_name='fedsim')\n")
    fedsim.chmod(0o755)
    script = """
        eval "$(_FEDSIM_COMPLETE=source_bash fedsim)"
        COMP_WORDS=(fedsim run scenario = quickstart strategy = fedau_); COMP_CWORD=7
        _fedsim_completion fedsim; echo "${COMPREPLY[@]}"
        COMP_WORDS=(fedsim list part); COMP_CWORD=2
        _fedsim_completion fedsim; echo "${COMPREPLY[@]}"
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOME),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["fedau_paper", "partition participation"], done.stderr
