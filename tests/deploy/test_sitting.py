"""One go at a deployed run, with a program that stands for Flower's command line."""

from __future__ import annotations

import json
import os
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config, compose
from fedsim.deploy import front, sitting
from fedsim.deploy.sitting import DeployedError, Sitting, configure, resumed_config
from fedsim.deploy.submission import SuperLink, SuperLinkError
from fedsim.engines import recipe
from fedsim.errors import ConfigError, ResumeError
from fedsim.progress import Display
from fedsim.results import RunFolder, json_line
from fedsim.rounds import RoundReport
from tests.deploy._flwr import Flwr

LINK = SuperLink(name="federation")
GO_ON = "fedsim deploy and so on"


class Shown(Display):
    def __init__(self) -> None:
        self.rounds: list[tuple[int, int]] = []
        self.ended = False

    def show(self, report: RoundReport, last_round: int) -> None:
        self.rounds.append((report.server_round, last_round))

    def __exit__(self, *_: object) -> None:
        self.ended = True


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flwr:
    return Flwr(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def config() -> Config:
    return configure("quickstart", ["client.epochs=1"], 3)


def line(**said: Any) -> str:
    return f"fedsim: {json.dumps(said)}\n"


def round_line(number: int) -> str:
    report = json.loads(json_line(RoundReport(server_round=number)))
    return line(round=report, last_round=9)


def on(config: Config, shown: Shown | None = None) -> str:
    return Sitting(config=config, how_to_resume=GO_ON).on(LINK, shown or Shown())


def test_rounds_are_shown_and_the_folder_is_returned(flwr: Flwr, config: Config) -> None:
    flwr.logs(round_line(0), round_line(0) + round_line(1) + line(exit=0, message="", run="/srv/x"))
    shown = Shown()
    assert on(config, shown) == "/srv/x"
    assert shown.rounds == [(0, 9), (1, 9)]
    assert shown.ended
    told = tomllib.loads(flwr.asked[0][2])
    assert recipe.read(told["scenario"]) == (config, False)
    assert "stop" not in flwr.verbs()


@pytest.mark.parametrize("code", [4, 2, 1])
def test_the_exit_code_is_that_on_the_superlinks_host(
    flwr: Flwr, config: Config, code: int
) -> None:
    flwr.logs(line(exit=code, message="too few clients", run=""))
    with pytest.raises(DeployedError, match=r"^too few clients$") as caught:
        on(config)
    assert caught.value.exit_code == code


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_a_run_that_ends_without_an_outcome_has_failed(
    flwr: Flwr, config: Config, status: str
) -> None:
    """Flower's word is not trusted: a server app that was killed says nothing."""
    flwr.statuses(f"finished:{status}")
    flwr.logs(round_line(0))
    with pytest.raises(DeployedError, match=f"'finished:{status}': as Flower .*{GO_ON}") as caught:
        on(config)
    assert caught.value.exit_code == 1


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(flwr: Flwr, config: Config) -> None:
    flwr.statuses("running")
    flwr.logs(round_line(0) + "WAIT\n")
    with pytest.raises(KeyboardInterrupt) as caught:
        on(config, Pressed(signal.SIGINT))
    assert flwr.verbs()[-1] == "stop"
    assert flwr.asked[-1][0][:3] == ["stop", "7", "federation"]
    assert caught.value.__notes__ == [f"go on from the latest checkpoint with: {GO_ON}"]


class Pressed(Shown):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def show(self, report: RoundReport, last_round: int) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), self.number)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_does_the_same_and_handlers_are_put_back(
    flwr: Flwr, config: Config, number: int
) -> None:
    flwr.statuses("running")
    flwr.logs(round_line(0) + "WAIT\n")
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        on(config, Pressed(number))
    assert flwr.verbs()[-1] == "stop"
    assert signal.getsignal(number) == before


def test_a_run_that_cannot_be_stopped_is_an_interruption_still(flwr: Flwr, config: Config) -> None:
    flwr.statuses("running")
    flwr.logs(round_line(0) + "WAIT\n")
    flwr.answer("stop", {"success": False, "error-message": "it has ended"})
    with pytest.raises(KeyboardInterrupt) as caught:
        on(config, Pressed(signal.SIGINT))
    first, second = caught.value.__notes__
    assert first.startswith("the run was not stopped: ") and "it has ended" in first
    assert GO_ON in second


def test_a_superlink_that_is_lost_is_told_with_how_to_go_on(flwr: Flwr, config: Config) -> None:
    flwr.answer("ls.2", {"success": False, "error-message": "connection refused"})
    flwr.logs(round_line(0))
    with pytest.raises(SuperLinkError, match=f"connection refused.*go on with: {GO_ON}"):
        on(config)


# --- how a scenario is fitted to devices ---------------------------------------------------------


def test_a_scenario_gets_one_client_per_device(caplog: pytest.LogCaptureFixture) -> None:
    fitted = configure("quickstart", [], 3)
    assert fitted.values["partition"]["num_clients"] == 3
    assert fitted.values["participation"]["clients_per_round"] == 3
    assert fitted.values["engine"]["_target_"] == sitting.ENGINE
    assert fitted.settings.checkpoint.every == 1
    assert "partition.num_clients=3, for 3 devices" in caplog.text
    assert configure("quickstart", [], None).values["partition"]["num_clients"] == 100


def test_what_fits_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    words = ["partition.num_clients=3", "participation.clients_per_round=2", "checkpoint.every=5"]
    fitted = configure("quickstart", words, 3)
    assert fitted.values["participation"]["clients_per_round"] == 2
    assert fitted.settings.checkpoint.every == 5
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("partition.num_clients=4", "set partition.num_clients=3, or leave it out"),
        ("++partition.num_clients=2", "set partition.num_clients=3, or leave it out"),
        ("participation.clients_per_round=9", "set participation.clients_per_round=3, or"),
    ],
)
def test_what_was_typed_otherwise_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure("quickstart", [word], 3)


def test_the_engines_keys_may_be_set() -> None:
    fitted = configure("quickstart", ["engine.connect_s=9", "engine.min_clients=2"], 3)
    assert fitted.values["engine"] == {
        "_target_": sitting.ENGINE,
        "connect_s": 9.0,
        "min_clients": 2,
    }


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_another_engine_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match="runs on engine=deployment alone"):
        configure("quickstart", [f"engine={engine}"], 3)


def test_too_few_devices_are_told_before_anything_is_started() -> None:
    words = ["partition.num_clients=5", "participation.clients_per_round=2"]
    five = configure("quickstart", words, None)
    with pytest.raises(ConfigError, match="--local 3: 5 of 5 clients are needed"):
        front.check(five, 3, smoke=False)
    some = compose("quickstart", ["engine=deployment", "engine.min_clients=3"])
    assert front.check(some, 3, smoke=False) == 100


def test_only_deployed_runs_are_resumed_as_such(tmp_path: Path) -> None:
    root = f"output.root={tmp_path}"
    deployed = RunFolder.create(configure("quickstart", [root], 3))
    assert resumed_config(deployed) == deployed.config()
    simulated = RunFolder.create(compose("quickstart", [root]))
    with pytest.raises(ResumeError, match="was not deployed; go on with: fedsim resume"):
        resumed_config(simulated)


def test_interruptions_are_left_alone_outside_the_main_thread(flwr: Flwr, config: Config) -> None:
    flwr.logs(line(exit=0, message="", run="/srv/x"))
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(on(config)))
    thread.start()
    thread.join(timeout=30)
    assert told == ["/srv/x"]
