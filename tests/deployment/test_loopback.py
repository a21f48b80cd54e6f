"""A real deployment on loopback, TLS and authentication on: same weights, and no strangers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from safetensors.torch import load_file

from fedsim.config import compose
from fedsim.deploy import commands, credentials
from fedsim.deploy.commands import Link
from fedsim.deploy.local import LocalDeployment, free_port
from fedsim.deploy.sitting import Sitting, configure
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.progress import JsonLines
from fedsim.results import RunFolder
from fedsim.simulation import Simulation

pytestmark = pytest.mark.slow

NODES = 2
SMALL = ["rounds=2", f"partition.num_clients={NODES}", "client.epochs=1", "model.hidden=[16]"]
FEDAVG = [*SMALL, "strategy=fedavg", "participation=full"]
ASKED = ["model=none", f"partition.num_clients={NODES}", "participation=full"]
RUNS = {
    "fedavg": FEDAVG,
    "fedau": [
        *SMALL,
        "strategy=fedau",
        "participation=bernoulli",
        "participation.rate=0.7",
        "seed=3",
    ],
    "fedadam": [*SMALL, "strategy=fedadam", "participation=full", "partition.holdout=0.2"],
    "diff2": [*SMALL, "strategy=diff2", "strategy.restart=2", "participation=full", "rounds=3"],
    "kernel_density": [*ASKED, "strategy=kernel_density", "strategy.features=64", "rounds=1"],
    "tap": [
        *(*ASKED, "data=zipf", "data.sizes=[300,200]", "data.bits=8", "data.items=50"),
        *("strategy=tap", "strategy.levels=4", "strategy.shared_levels=1", "strategy.k=3"),
        "rounds=2",
    ],
    "semipfl": [
        *("rounds=2", "data.server_subjects=2", f"data.users={NODES}", "data.windows=60"),
        *("data.subjects=4", "strategy.base_epochs=3", "strategy.mix_epochs=5", "devices=equal"),
        "evaluation.every=1",
    ],
}
"""TAP without a mechanism: on devices, whose coins are the system's, no two runs are the same."""

SCENARIO = {"semipfl": "semipfl_wearable"}
"""Of those that are not of `quickstart`."""


def nightly_but(names: Iterable[str], often: set[str]) -> list[ParameterSet]:
    """A deployed run takes a minute or two of CPU, most of it for Flower's processes to start."""
    marks = {name: [] if name in often else [pytest.mark.nightly] for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with LocalDeployment(folder, NODES, secure=True) as started:
        yield started


def weights(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    return sha256(b"".join(name.encode() + tensors[name].numpy().tobytes() for name in tensors))


@pytest.mark.parametrize("name", nightly_but(RUNS, {"fedavg", "diff2", "tap"}))
def test_a_run_ends_with_the_same_weights(
    deployment: LocalDeployment, name: str, tmp_path: Path
) -> None:
    words = [*RUNS[name], f"output.root={tmp_path}"]
    scenario = SCENARIO.get(name, "quickstart")
    here = compose(scenario, [*words, "engine=in_process"])
    local = Run(simulation=Simulation(here), folder=RunFolder.create(here))
    reports = list(local.start())
    config = configure(scenario, words, NODES)
    folder = RunFolder.create(config)
    started = time.monotonic()
    Sitting(config=config, folder=str(folder.path)).on(deployment.superlink, JsonLines())
    assert time.monotonic() - started < 240
    assert weights(folder.path) == weights(local.folder.path)
    for told, report in zip(folder.rounds(), reports, strict=True):
        assert told["admitted"] == report.admitted
        assert told["train"] == report.train
        assert told["central"] == report.central
        assert told["per_client"] == report.per_client
        assert told["footprint"] == report.footprint
        assert not told["rejected"]


PRIVATE = {
    "dp_sgd": ["privacy.sample_rate=0.2", "client.steps=2", "client.epochs=null"],
    "user_dp": ["participation=full"],
}


@pytest.mark.parametrize("mechanism", nightly_but(PRIVATE, {"dp_sgd"}))
def test_noise_on_devices_is_the_systems_and_the_statement_says_so(
    deployment: LocalDeployment, mechanism: str, tmp_path: Path
) -> None:
    words = [*FEDAVG, f"privacy={mechanism}", "privacy.noise_multiplier=1"]
    words += ["privacy.epsilon=null"]
    words += [*PRIVATE[mechanism], f"output.root={tmp_path}", "rounds=1"]
    here = compose("quickstart", [*words, "engine=in_process"])  # keyed noise of the same seed
    keyed = Run(simulation=Simulation(here), folder=RunFolder.create(here))
    list(keyed.start())
    config = configure("quickstart", words, NODES)
    folder = RunFolder.create(config)
    Sitting(config=config, folder=str(folder.path)).on(deployment.superlink, JsonLines())
    claim = json.loads((folder.path / "summary.json").read_text())["privacy"]
    assert claim["noise"].startswith("noise from the operating system's generator")
    assert claim["unit"] == ("example" if mechanism == "dp_sgd" else "user")
    assert 0 < claim["epsilon"] < 20
    lines = (folder.path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1]
    assert "train-loss" not in next(r for r in folder.rounds() if r["server_round"])["train"]
    assert weights(folder.path) != weights(keyed.folder.path)


def online(deployment: LocalDeployment) -> list[str]:
    done = subprocess.run(
        [commands.program("flwr"), "supernode", "list", "local", "--format", "json"],
        env=commands.environment(deployment.superlink.home),
        capture_output=True,
        text=True,
        check=True,
    )
    nodes = json.loads(done.stdout[done.stdout.index("{") :])["nodes"]
    return sorted(str(node["node-id"]) for node in nodes if node["status"] == "online")


def test_strangers_are_refused(deployment: LocalDeployment, tmp_path: Path) -> None:
    """A node in plain text, one that trusts another authority, one that nobody registered."""
    assert deployment.link.credentials is not None
    ours, theirs = deployment.link.credentials, tmp_path / "theirs"
    credentials.write_certificates(theirs, ["127.0.0.1"])
    credentials.write_node_key(tmp_path / "key")

    def link(folder: Path | None) -> Link:
        return Link(
            host="127.0.0.1", port=deployment.link.port, bind="127.0.0.1", credentials=folder
        )

    strangers = {
        "plain": (link(None), None),
        "authority": (link(theirs), ours / "node-0"),
        "unregistered": (link(ours), tmp_path / "key"),
    }
    known = online(deployment)
    assert len(known) == NODES
    processes = {}
    for name, (where, key) in strangers.items():
        command = commands.supernode(where, {"partition-id": 0}, port=free_port(), key=key)
        with (tmp_path / f"{name}.log").open("w") as log:
            processes[name] = subprocess.Popen(
                [commands.program(command[0]), *command[1:]],
                env=commands.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            assert online(deployment) == known
            time.sleep(1)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for name in strangers:
        log = (tmp_path / f"{name}.log").read_text()
        assert "SuperNode ID" not in log, name  # what a node says that was let in
        assert "Starting Flower SuperNode" in log
