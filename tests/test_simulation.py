"""A whole run, built from a scenario: the same every time, with our parts and with anybody's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.catalog import entries
from fedsim.checkpoint import encode
from fedsim.config import Config, compose
from fedsim.errors import ConfigError
from fedsim.report.shown import MOST_CLIENTS
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke
from tests.bench import bench_scale

HOME = Path(__file__).parents[1]
SMALL = ["device=cpu", "rounds=4", "client.epochs=1", "model.hidden=[16]"]


def run(config: Config) -> tuple[str, list[RoundReport]]:
    """Return the SHA-256 of the final weights, and all reports."""
    simulation = Simulation(config)
    params, reports = simulation.runtime.initial_params(), []
    for params, report in simulation.loop.run(simulation.runtime.initial_params()):  # noqa: B007
        reports.append(report)
    return hashlib.sha256(encode(params)).hexdigest(), reports


def quickstart(*overrides: str) -> tuple[str, list[RoundReport]]:
    return run(compose("quickstart", [*SMALL, *overrides]))


def metrics(reports: list[RoundReport]) -> list[object]:
    return [(r.server_round, r.admitted, r.train, r.clients, r.central) for r in reports]


# --- determinism ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_the_same_seed_gives_the_same_weights(engine: str) -> None:
    first, second = quickstart(f"engine={engine}"), quickstart(f"engine={engine}")
    assert first[0] == second[0]
    assert metrics(first[1]) == metrics(second[1])
    assert quickstart(f"engine={engine}", "seed=1")[0] != first[0]


def test_global_generators_and_threads_do_not_matter() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = quickstart()
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.set_num_threads(2)
    assert quickstart()[0] == first[0]
    assert torch.get_num_threads() == 1


def test_another_process_gives_the_same_weights(tmp_path: Path) -> None:
    words = [*SMALL, f"output.root={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "fedsim.cli", "run", "scenario=quickstart", *words],
        env={**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    (model,) = tmp_path.rglob("quickstart/*/model.safetensors")
    expected, reports = quickstart()
    assert hashlib.sha256(model.read_bytes()).hexdigest() == expected
    written = (model.parent / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["central"] for line in written] == [r.central for r in reports]


@pytest.mark.parametrize("strategy", ["fedau", "fedadam"])
def test_bytes_on_a_wire_change_nothing(strategy: str) -> None:
    words = ["engine=in_process", f"strategy={strategy}", "partition.holdout=0.2"]
    words += ["evaluation.clients=cohort"]
    zero_copy, wire = quickstart(*words), quickstart(*words, "engine.wire_check=true")
    assert zero_copy[0] == wire[0]
    assert metrics(zero_copy[1]) == metrics(wire[1])


def test_engines_agree() -> None:
    (_, cohort), (_, sequential) = quickstart(), quickstart("engine=in_process")
    for ours, reference in zip(cohort, sequential, strict=True):
        assert sorted(ours.admitted) == sorted(reference.admitted)
        assert ours.central == pytest.approx(reference.central, rel=1e-4)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_precision_is_of_data_and_weights(precision: str) -> None:
    simulation = Simulation(compose("quickstart", [*SMALL, f"precision={precision}"]))
    dtype = getattr(torch, precision)
    assert simulation.dataset.train_x.dtype is dtype
    for params, _ in simulation.loop.run(simulation.runtime.initial_params()):
        assert {tensor.dtype for tensor in params.values()} == {dtype}


def test_auto_takes_what_is_there() -> None:
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert Simulation(compose("quickstart", ["device=auto"])).device.type == there


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_absent_is_named(device: str) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(ConfigError, match=rf"device: '{device}' is not there \(.*use auto or cpu"):
        assert Simulation(compose("quickstart", [f"device={device}"])).device


@pytest.mark.parametrize("clients", ["cohort", "all"])
def test_clients_without_held_out_samples_cannot_evaluate(clients: str) -> None:
    config = compose("quickstart", [*SMALL, f"evaluation.clients={clients}"])
    with pytest.raises(
        ConfigError, match=r"set partition\.holdout, e\.g\. partition\.holdout=0\.2"
    ):
        assert Simulation(config).loop


def test_evaluation_follows_its_rules() -> None:
    _, reports = quickstart("rounds=5", "evaluation.every=2", "partition.holdout=0.2",
                            "evaluation.clients=cohort")  # fmt: skip
    assert [bool(report.central) for report in reports] == [True, False, True, False, True, True]
    assert [bool(report.clients) for report in reports] == [False, False, True, False, True, True]
    _, reports = quickstart("evaluation.central=false")
    assert [report.server_round for report in reports] == [1, 2, 3, 4]
    assert not any(report.central for report in reports)


def test_a_smoke_run_does_little() -> None:
    config = compose("quickstart", ["device=cpu", "client.epochs=3", "partition.holdout=0.2",
                                    "evaluation.clients=all"])  # fmt: skip
    simulation = Simulation(config, Smoke())
    reports = [report for _, report in simulation.loop.run(simulation.runtime.initial_params())]
    assert [(report.server_round, report.asked) for report in reports] == [(0, 0), (1, 2)]
    assert len(reports[1].per_client["client-index"]) == 2
    assert simulation.work.num_steps(1000) == 1


def test_the_partition_is_described_by_a_sample_of_clients() -> None:
    words = ["partition=resampled", "partition.num_clients=1000000", "device=cpu"]
    words += ["partition.samples_per_client=7"]
    described = Simulation(compose("quickstart", words)).describe_partition()
    assert described["num_clients"] == 1_000_000
    assert described["clients"][0] == 0
    assert len(described["clients"]) == len(set(described["clients"])) == MOST_CLIENTS
    assert all(sum(row) == 7 for row in described["histogram"])
    json.dumps(described)


# --- anybody's parts -----------------------------------------------------------------------------

SEQUENTIAL = """
# A model made of torch.nn alone
defaults:
  - base
  - override /model: null
  - _self_
model:
  _target_: torch.nn.Sequential
  _args_:
    - {_target_: torch.nn.Linear, in_features: 64, out_features: 16}
    - {_target_: torch.nn.Tanh}
    - {_target_: torch.nn.Linear, _args_: [16, 10]}
"""


def test_a_model_of_torch_modules_in_a_file_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SEQUENTIAL)
    words = ["device=cpu", "rounds=3"]
    config = compose(str(tmp_path / "mine.yaml"), words)
    simulation = Simulation(config)
    assert isinstance(simulation.model, nn.Sequential)
    shapes = {name: tuple(t.shape) for name, t in simulation.runtime.initial_params().items()}
    assert shapes == {"0.weight": (16, 64), "0.bias": (16,), "2.weight": (10, 16), "2.bias": (10,)}
    digest, reports = run(config)
    assert reports[-1].central["accuracy"] > reports[0].central["accuracy"]
    assert run(Config.from_yaml(config.to_yaml()))[0] == digest
    reference = run(compose(str(tmp_path / "mine.yaml"), [*words, "engine=in_process"]))[1]
    assert reports[-1].central == pytest.approx(reference[-1].central, rel=1e-4)


STRATEGY = '''
"""FedProx with a trimmed step: pulls clients to the model they got, and moves half the way."""

from dataclasses import dataclass
from typing import Annotated

from fedsim.client.half import ClientHalf
from fedsim.parts import Range
from fedsim.records import UpdateSum
from fedsim.strategy import FedsimStrategy


@dataclass(frozen=True)
class Pull(ClientHalf):
    mu: float

    def correct(self, grads, params, context):
        pulls = {name: params[name] - context.start[name] for name in grads}
        return {name: grad + self.mu * pulls[name] for name, grad in grads.items()}


@dataclass(kw_only=True)
class HalfWay(FedsimStrategy):
    """Half a step of FedProx."""

    mu: Annotated[float, Range(ge=0)] = 0.1

    @property
    def client_half(self):
        return Pull(self.mu)

    def __post_init__(self):
        super().__post_init__()
        self._rounds = 0

    def aggregate(self, context, replies):
        self._rounds += 1
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.num_examples)
        return total.step(0.5 / total.weight) if total.count else context.params

    def state_dict(self):
        return {"rounds": self._rounds}

    def load_state_dict(self, state):
        self._rounds = int(state["rounds"])
'''
SCENARIO = """
# Somebody's own algorithm
defaults:
  - base
  - override /strategy: null
  - _self_
plugins: [{package}.]
strategy:
  _target_: {package}.HalfWay
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file and one YAML, anywhere; returns the scenario."""
    package = f"lab_{tmp_path.name}"  # each test's own: Python keeps what it has imported
    (tmp_path / f"{package}.py").write_text(STRATEGY)
    (tmp_path / "mine.yaml").write_text(SCENARIO.format(package=package))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "mine.yaml"


def test_somebodys_strategy_is_one_file_and_one_yaml(lab: Path) -> None:
    words = ["device=cpu", "rounds=3", "strategy.mu=1.0"]
    digest, cohort = run(compose(str(lab), words))
    _, sequential = run(compose(str(lab), [*words, "engine=in_process"]))
    assert cohort[-1].central == pytest.approx(sequential[-1].central, rel=1e-4)
    assert run(compose(str(lab), [*words, "strategy.mu=0.0"]))[0] != digest, "the client half runs"
    assert run(compose("base", words[:2]))[0] != digest, "the server half runs"


def test_its_keys_are_checked_as_ours_are(lab: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.mu: -1\.0 is out of range; allowed: \[0,"):
        compose(str(lab), ["strategy.mu=-1"])
    with pytest.raises(
        ConfigError, match=r"unknown key 'strategy\.muu'.*did you mean 'strategy\.mu'"
    ):
        compose(str(lab), ["strategy.muu=1"])


def test_without_plugins_it_is_refused(lab: Path) -> None:
    with pytest.raises(ConfigError, match=r"list its package under 'plugins:'"):
        compose(str(lab), ["plugins=[]"])


def test_in_the_tree_it_is_one_file_and_one_yaml_too(tmp_path: Path) -> None:
    """Nothing else is edited: it runs, and is listed, from a tree with the two files added."""
    for name in ("fedsim", "privacy", "strategies", "scenarios"):
        shutil.copytree(HOME / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "strategies" / "half_way.py").write_text(STRATEGY)
    (tmp_path / "scenarios" / "strategy" / "half_way.yaml").write_text(
        "# Half a step of FedProx\n_target_: strategies.half_way.HalfWay\nmu: 0.2\n"
    )
    listed = {entry.name: entry.summary for entry in entries("strategy", tmp_path / "scenarios")}
    assert listed["half_way"] == "Half a step of FedProx"
    words = ["scenario=quickstart", "strategy=half_way", *SMALL, f"output.root={tmp_path / 'runs'}"]
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.cli", "run", *words, "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["server_round"] for line in done.stdout.splitlines()] == [
        0,
        1,
        2,
        3,
        4,
    ]


# --- scale ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_million_clients_cost_what_their_cohort_costs() -> None:
    """The claims of `tests/bench/bench_scale.py`, over fewer rounds."""
    few, many = ((clients, bench_scale.COHORT) for clients in (10**3, 10**6))
    figures = bench_scale.measure([few, many], repetitions=3, rounds=30)
    more = bench_scale.excess(figures[few], figures[many])
    assert more["memory_mb"] < bench_scale.MEMORY_MB
    assert more["round_ratio"] < bench_scale.ROUND_RATIO
    assert more["start_s"] < bench_scale.START_S
