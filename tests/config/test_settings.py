"""The typed top level, against `scenarios/base.yaml` and at the limits of each range."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedsim.catalog import GROUPS, ROOT
from fedsim.config.settings import SECTIONS, Admission, Checkpoint, Evaluation, Output, Scenario
from fedsim.errors import ConfigError


def test_defaults_are_those_of_base_yaml() -> None:
    base: Any = OmegaConf.to_container(OmegaConf.load(Path(ROOT) / "base.yaml"))
    groups = [name for entry in base.pop("defaults") if entry != "_self_" for name in entry]
    assert groups == list(GROUPS)
    declared = dataclasses.asdict(Scenario())
    declared["plugins"] = list(declared["plugins"])
    assert base == declared
    assert list(base) == list(declared), "same order, so that both read alike"


def test_sections_are_the_fields_that_are_parts() -> None:
    scenario = Scenario()
    made = {f.name: type(getattr(scenario, f.name)) for f in dataclasses.fields(Scenario)}
    assert {name: kind for name, kind in made.items() if dataclasses.is_dataclass(kind)} == SECTIONS


@pytest.mark.parametrize(
    ("part", "field", "good", "bad"),
    [
        (Scenario, "seed", [0, 2**32 - 1], [-1, 2**32, True, "0", 0.5, None]),
        (Scenario, "rounds", [1, 2**32 - 1, 1e3], [0, 2**32, "fifty", None, float("nan")]),
        (Scenario, "precision", ["float32", "float64"], ["float16", 32, None]),
        (
            Scenario,
            "device",
            ["auto", "cpu", "cuda", "cuda:0", "mps"],
            ["gpu", "cuda:", "cuda:x", ""],
        ),
        (
            Scenario,
            "name",
            ["a", "A-b_c.1", "9", "x" * 100],
            ["", "a b", ".a", "../a", "a/b", "x" * 101],
        ),
        (Scenario, "name", [], ["a\n", "-rf", "é"]),
        (Scenario, "plugins", [[], ["mylab."], ("a", "b.c")], ["mylab.", [3], ["os."], [""], None]),
        (Evaluation, "every", [1, 10**6], [0, -1, 1.5]),
        (Evaluation, "central", [True, False], [0, "yes", None]),
        (Evaluation, "clients", ["none", "cohort", "all"], ["some", None]),
        (Evaluation, "batch_size", [1], [0]),
        (Checkpoint, "every", [1], [0]),
        (Checkpoint, "keep", [1], [0]),
        (Admission, "max_examples", [1], [0]),
        (Admission, "on_failure", ["continue", "stop"], ["retry"]),
        (Admission, "timeout_s", [1e-3, 5], [0, -1.0, float("nan")]),
        (Output, "root", ["runs", "/tmp/x"], ["", "a\0b", None]),
    ],
)
def test_ranges(part: Any, field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        part(**{field: value})
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{field}"):
            part(**{field: value})
