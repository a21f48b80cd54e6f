"""What a deployment stands: bad clients, lost processes, too few devices, an impatient user."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsim.admission import Admission
from fedsim.config import compose
from fedsim.deploy.local import LocalDeployment, descendants
from fedsim.deploy.sitting import DeployedError, Sitting, configure
from fedsim.deploy.submission import SuperLinkError
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.progress import JsonLines
from fedsim.results import RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation

pytestmark = pytest.mark.slow

HOME = Path(__file__).parents[2]
FAULTY = str(HOME / "tests" / "assets" / "faulty" / "faulty.yaml")
DEADLINE_S = 30


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    """Flower's processes find the faulty devices' code where we do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HOME))
        yield


def sitting(folder: RunFolder, extend: int = 0) -> Sitting:
    return Sitting(config=folder.config(), folder=str(folder.path.resolve()), extend=extend)


def test_bad_clients_are_counted_and_too_few_end_the_run_in_time(tmp_path: Path) -> None:
    """One device fails, one lies about its samples, one is late: the fourth makes the model."""
    behaviour = {1: "raise", 2: "lie", 3: "sleep"}
    nodes = {node: {"data.behave": behave} for node, behave in behaviour.items()}
    with LocalDeployment(tmp_path / "link", 4, node_config=nodes) as deployment:
        words = ["rounds=2", f"admission.timeout_s={DEADLINE_S}", f"output.root={tmp_path}"]
        folder = RunFolder.create(configure(FAULTY, words, 4))
        sitting(folder).on(deployment.superlink, JsonLines())
        _, first, second = folder.rounds()
        for told in (first, second):
            assert told["asked"] == 4
            assert told["admitted"] == [0]
            assert told["rejected"] == {"error": 1, "weight": 1}
            assert told["seconds"] < DEADLINE_S + 5
        assert any("the disk is on fire" in detail for detail in first["details"])
        assert any("1000000000000.0" in detail for detail in first["details"])
        assert "no reply within 30 s from 1 clients: [3]" in (folder.path / "log.txt").read_text()
        assert second["central"]["loss"] < first["central"]["loss"]

        words = [f"output.root={tmp_path}", "engine.connect_s=20", "partition.num_clients=5"]
        folder = RunFolder.create(configure(FAULTY, words, None))
        started = time.monotonic()
        with pytest.raises(DeployedError, match=r"of 5 clients have .* missing: .*4\.") as caught:
            sitting(folder).on(deployment.superlink, JsonLines())
        assert caught.value.exit_code == 4
        assert time.monotonic() - started < 20 + 40


class After(JsonLines):
    """Calls something once, after a round was shown."""

    def __init__(self, server_round: int, act: object) -> None:
        self.server_round, self.act = server_round, act

    def show(self, report: RoundReport, last_round: int) -> None:
        super().show(report, last_round)
        if report.server_round == self.server_round:
            threading.Thread(target=self.act).start()  # type: ignore[arg-type]


def test_a_node_is_killed_and_returns_and_the_superlink_is_killed_and_resumed(
    tmp_path: Path,
) -> None:
    with LocalDeployment(tmp_path / "link", 3) as deployment:
        words = ["rounds=6", f"admission.timeout_s={DEADLINE_S}", f"output.root={tmp_path}"]
        folder = RunFolder.create(configure(FAULTY, words, 3))
        before: list[dict[str, Any]] = []

        def disturb() -> None:
            """Kill a node in the second round; kill the SuperLink when the node is back."""
            time.sleep(4)
            deployment.kill("node-2")
            time.sleep(1)
            deployment.start_node(2)
            while len(before) < 2 or 2 not in before[-1]["admitted"]:
                time.sleep(0.5)
                before[:] = [told for told in folder.rounds() if told["server_round"] > 1]
            deployment.kill("superlink")

        with pytest.raises((SuperLinkError, DeployedError)):
            sitting(folder).on(deployment.superlink, After(1, disturb))
        lost = [told["server_round"] for told in before if 2 not in told["admitted"]]
        assert lost[0] == 2
        assert len(lost) <= 2
        deployment.start_superlink()
        sitting(folder).on(deployment.superlink, JsonLines())
        told = list(folder.rounds())
        assert [line["server_round"] for line in told] == list(range(7))
        assert told[before[-1]["server_round"]] == before[-1]  # went on; did not begin again
        assert told[-1]["admitted"] == [0, 1, 2]


def test_ctrl_c_leaves_no_process_and_the_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = ["rounds=2", "client.epochs=1", "model.hidden=[16]", f"output.root={tmp_path}"]
    fedsim = [sys.executable, "-m", "fedsim.cli", "deploy"]
    process = subprocess.Popen(
        [*fedsim, "scenario=quickstart", *words, "--local", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if line.startswith("round 1/"):
            break
    started = descendants(process.pid)
    assert len(started) >= 5  # a SuperLink, two SuperNodes, what they started
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(30) == 130
    assert not [pid for pid in started if _runs(pid)]
    command = re.search(r"fedsim deploy --resume (\S+) --local 2", said)
    assert command is not None, said
    run = Path(command[1])
    resumed = subprocess.run(
        [*fedsim, "--resume", str(run), "--local", "2"], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "round 2/2" in resumed.stdout
    assert "round 1/2" not in resumed.stdout
    fitted = ["partition.num_clients=2", "participation.clients_per_round=2", "engine=in_process"]
    here = compose("quickstart", [*words, *fitted])
    local = Run(simulation=Simulation(here), folder=RunFolder.create(here))
    list(local.start())
    digests = [sha256((r / "model.safetensors").read_bytes()) for r in (run, local.folder.path)]
    assert digests[0] == digests[1]
    assert (run / "report.html").is_file()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_admission_has_the_bounds_that_these_tests_rely_on() -> None:
    assert Admission().max_examples < 1e12
