"""From the words of a sweep to its points."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.errors import ConfigError
from fedsim.sweep.grid import MOST_POINTS, check, expand
from fedsim.sweep.runner import place, plan

Q = "scenario=quickstart"


def labels(*words: str) -> list[str]:
    return [point.label for point in expand(words)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([Q, "seed=0,1"], ["seed=0", "seed=1"]),
        ([Q, "seed=range(3)"], ["seed=0", "seed=1", "seed=2"]),
        ([Q, "seed=range(5,0,-2)"], ["seed=5", "seed=3", "seed=1"]),
        ([Q, "client.lr=range(0.1,0.4,0.1)"], [f"client.lr=0.{i}" for i in (1, 2, 3)]),
        ([Q, "seed=choice(4,2)"], ["seed=4", "seed=2"]),
        ([Q, "seed=sort(4,2)"], ["seed=2", "seed=4"]),
        ([Q, "seed=3,3,4"], ["seed=3", "seed=4"]),
        ([Q, "model.hidden=[8],[16,8]"], ["model.hidden=[8]", "model.hidden=[16,8]"]),
        ([Q, "device='cpu',auto"], ["device='cpu'", "device=auto"]),
        (
            [Q, "strategy=glob(fed*,exclude=[feda*,fedb*,fedd*,fedl*,fedm*,fedn*,fedp*,fedr*])"],
            None,
        ),
        (["scenario=quickstart,regression"], ["scenario=quickstart", "scenario=regression"]),
        (["scenario=glob(fedld*)"], ["scenario=fedld_digits", "scenario=fedld_retina"]),
    ],
    ids=lambda value: " ".join(value)[:50] if value else "",
)
def test_a_word_with_several_values(words: list[str], expected: list[str] | None) -> None:
    if expected is None:
        expected = [f"strategy={name}" for name in ("fedtrimmedavg", "fedvarp", "fedyogi")]
    assert labels(*words) == expected


def test_a_grid_is_the_product_and_keeps_what_does_not_vary() -> None:
    points = expand([Q, "client.lr=0.1,0.2", "rounds=3", "++seed=0,1"])
    assert [p.overrides for p in points] == [
        (f"client.lr={lr}", "rounds=3", f"++seed={seed}") for lr in (0.1, 0.2) for seed in (0, 1)
    ]
    assert points[2].axes == {"client.lr": "0.2", "seed": "0"}
    assert points[2].command == "fedsim run scenario=quickstart client.lr=0.2 rounds=3 ++seed=0"


def test_several_grids_and_several_scenarios() -> None:
    words = [Q, "strategy=fedprox", "strategy.mu=0.1,1", "rounds=2", "and", "strategy=fedavg"]
    points = expand([*words, "rounds=2", "and", "scenario=regression,million", "rounds=2"])
    assert [point.label for point in points] == [
        "scenario=quickstart strategy=fedprox strategy.mu=0.1",
        "scenario=quickstart strategy=fedprox strategy.mu=1",
        "scenario=quickstart strategy=fedavg",
        "scenario=regression",
        "scenario=million",
    ]
    assert points[2].overrides == ("strategy=fedavg", "rounds=2")


def test_the_path_of_a_scenario_need_not_be_in_the_grammar(tmp_path: Path) -> None:
    odd = tmp_path / "a b=c" / "own.yaml"
    assert expand([f"scenario={odd}", "seed=0,1"])[0].scenario == str(odd)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["one scenario=NAME is needed in a grid, got: nothing"]),
        (["seed=0,1"], ["one scenario=NAME is needed in a grid, got: seed=0,1"]),
        ([Q, Q, "seed=0,1"], ["one scenario=NAME is needed"]),
        ([Q], ["nothing varies here", "fedsim run scenario=quickstart", "seed=0,1,2"]),
        ([Q, "seed=2,2"], ["nothing varies here"]),
        ([Q, "seed=range(5,0)"], ["'seed=range(5,0)' is an empty list"]),
        ([Q, "seed=range(0,5,0)"], ["a step of 0 never gets to 5"]),
        ([Q, "seed=range(0,1e9)"], ["1,000,000,000 values"]),
        ([Q, "seed=range(0,200)", "rounds=range(1,200)"], ["39,800 points", f"{MOST_POINTS:,}"]),
        ([Q, "seed=interval(0,1)"], ["no values to list", "seed=range(0,5)"]),
        ([Q, "seed=shuffle(0,1)"], ["leave shuffle() out"]),
        ([Q, "seed=choice()"], ["cannot read override 'seed=choice()'"]),
        ([Q, "seed=0,1", "and"], ["a grid is empty; 'and' stands between two"]),
        (["and", Q, "seed=0,1"], ["a grid is empty"]),
        ([Q, "seed=0,1", "seed=3"], ["seed is given twice"]),
        ([Q, "strategy=glob(z*)"], ["matches none of: ", "average_all"]),
        (["scenario=glob(z*)"], ["matches none of: ", "cnn_fashion"]),
        ([Q, "client.lr=glob(*)"], ["glob matches the names of scenarios and of parts"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_what_is_no_grid(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        expand(words)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([Q, "seed=0,1", "roudns=3"], ["point 1 of 2 (seed=0)", "did you mean 'rounds'?"]),
        ([Q, "strategy=fedavg,fedua"], ["point 2 of 2 (strategy=fedua)", "mean 'fedau'?"]),
        ([Q, "client.lr=0.1,-1"], ["point 2 of 2 (client.lr=-1)", "out of range"]),
        (["scenario=quickstart,quikstart"], ["point 2 of 2 (scenario=quikstart)", "'quickstart'?"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_a_wrong_point_is_named_before_anything_runs(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check(expand(words))
    for part in parts:
        assert part in str(error.value)


def test_points_of_equal_configuration_are_one() -> None:
    entries, configs, equal = plan(expand([Q, "client.lr=0.1,0.10,0.2", "and", "client.lr=0.2"]))
    assert [entry.point.label for entry in entries] == ["client.lr=0.1", "client.lr=0.2"]
    assert [entry.number for entry in entries] == [1, 2]
    assert (len(configs), equal) == (2, 1)
    assert [entry.hash for entry in entries] == [config.hash for config in configs]


def test_sweeps_lie_beside_the_runs() -> None:
    _, configs, _ = plan(expand(["scenario=quickstart,regression", "output.root=here/runs"]))
    assert place(configs, None) == (Path("here/sweeps"), "quickstart+regression")
    assert place(configs, "mine") == (Path("here/sweeps"), "mine")
    for name in ("../x", "a/b", ".hidden", ".."):
        with pytest.raises(ConfigError, match="--name"):
            place(configs, name)
