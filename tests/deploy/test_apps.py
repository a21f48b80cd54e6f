"""The two apps that serve every scenario, over a made-up Flower grid: whole runs in a moment."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedsim.config import Config, compose
from fedsim.deploy import client_app, server_app, server_lines
from fedsim.deploy.sitting import configure
from fedsim.engines import recipe, remote
from fedsim.errors import FedsimError, ResumeError, TooFewClientsError
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.engines._nodes import Clock, Nodes

WORDS = ["model.hidden=[8]", "client.epochs=1", "rounds=3", "device=cpu"]
CLIENTS = 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    monkeypatch.setattr("fedsim.report.html.write_report", lambda _: None)
    return clock


def deployed(root: Path, *words: str) -> Config:
    return configure("quickstart", [*WORDS, f"output.root={root}", *words], CLIENTS)


def asked(config: Config, folder: str = "", extend: int = 0, smoke: bool = False) -> dict[str, Any]:
    text = recipe.write(config, smoke=smoke)
    return {"scenario": text, "run-folder": folder, "extend": extend}


def federation(clock: Clock, run_config: dict[str, Any], clients: int = CLIENTS) -> Nodes:
    nodes = Nodes(clock, None)
    nodes.app, nodes.run_config = client_app.app, run_config
    for client in range(clients):
        nodes.join(client, ready_s=3.0 - client / 2)
    return nodes


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def simulated(config: Config, root: Path) -> Path:
    """Run the same scenario in one process; return its folder."""
    path = root / "simulated.yaml"
    values = {**config.values, "engine": {"_target_": "fedsim.engines.in_process.InProcess"}}
    text = Config(config.scenario, config.overrides, values).to_yaml()
    path.write_text(text)
    same = compose(str(path), [f"output.root={root}/simulated"])
    folder = RunFolder.create(same)
    list(Run(simulation=Simulation(same), folder=folder).start())
    return folder.path


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=fedau"],
        ["strategy=fedadam"],
        ["strategy=fedavg", "compression=top_k"],
        ["strategy=fedadam", "compression=qsgd"],
    ],
    ids="-".join,
)
def test_a_deployed_run_ends_with_the_model_of_a_simulated_one(
    clock: Clock, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = deployed(tmp_path, *words, "participation.clients_per_round=3")
    run_config = asked(config)
    path = server_app.serve(federation(clock, run_config), run_config)
    assert path.parent == tmp_path / "quickstart"
    assert sha(path) == sha(simulated(config, tmp_path))
    said = [server_lines.read(line) for line in capsys.readouterr().out.splitlines()]
    rounds = [told["round"]["server_round"] for told in said if told]
    assert rounds == [0, 1, 2, 3]


def test_the_token_of_flowers_process_is_written_nowhere(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["flwr-serverapp", "--token", "5ec2e7"])
    config = deployed(tmp_path, "seed=4")
    run_config = asked(config)
    path = server_app.serve(federation(clock, run_config), run_config)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert not [file for file in files if b"5ec2e7" in file.read_bytes()]
    command = json.loads((path / "env.json").read_text())["command"]
    assert command[:3] == ["fedsim", "deploy", "scenario=quickstart"]
    assert "seed=4" in command


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(clock: Clock, tmp_path: Path) -> None:
    config = deployed(tmp_path, "strategy=fedau")
    run_config = asked(config)
    whole = server_app.serve(federation(clock, run_config), run_config)
    folder = RunFolder.create(config)
    rest = asked(config, str(folder.path))
    nodes = federation(clock, rest)

    def leaves(message: Any, reply: Any) -> Any:
        """The third round finds nobody there."""
        if message.content["config"].get("server-round") == 2:
            clock.at(clock.now - 1000 + 4.0, nodes.nodes.clear)
        return reply

    nodes.misbehave[nodes.of(0)] = leaves
    nodes.ready_s[nodes.of(1)] = 4.0
    with pytest.raises(TooFewClientsError):
        server_app.serve(nodes, rest)
    assert not (folder.path / "model.safetensors").exists()
    assert "TooFewClientsError" in (folder.path / "log.txt").read_text()
    assert (folder.path / "checkpoint" / "round-000002").is_dir()
    assert server_app.serve(federation(clock, rest), rest) == folder.path
    assert sha(folder.path) == sha(whole)


def test_a_finished_run_is_extended(clock: Clock, tmp_path: Path) -> None:
    config = deployed(tmp_path)
    run_config = asked(config)
    path = server_app.serve(federation(clock, run_config), run_config)
    short = sha(path)
    longer = asked(config, str(path), extend=5)
    assert server_app.serve(federation(clock, longer), longer) == path
    five = deployed(tmp_path / "five", "rounds=5")
    run_config = asked(five)
    assert sha(server_app.serve(federation(clock, run_config), run_config)) == sha(path) != short


def test_devices_bring_data_of_their_own(clock: Clock, tmp_path: Path) -> None:
    """Three files of other people: the server's, and one on each of two devices."""
    rng = np.random.default_rng(0)
    for name, rows in {"server": 12, "one": 40, "two": 64}.items():
        (tmp_path / name).mkdir()
        x = rng.normal(size=(rows, 2))
        lines = [f"{a:.4f},{b:.4f},{int(a > b)}" for a, b in x]
        (tmp_path / name / "people.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    words = ["data=table", "data.file=people.csv", "data.scale=none", "partition=whole"]
    words += ["partition.num_clients=2", "participation=full", f"data.root={tmp_path}/server"]
    config = configure("base", [*WORDS, f"output.root={tmp_path}/runs", *words], 2)
    run_config = asked(config)
    nodes = federation(clock, run_config, clients=2)
    nodes.own = {k: {"data.root": str(tmp_path / name)} for k, name in enumerate(("one", "two"))}
    path = server_app.serve(nodes, run_config)
    _, *rounds = RunFolder.open(path).rounds()
    assert [told["train"]["num-examples"] for told in rounds] == [30 + 48] * 3
    nodes.own = {1: {"partition.num_clients": 5}}
    with pytest.raises(FedsimError, match=r"every client failed[\s\S]*may set only its own"):
        nodes.own[0] = {"seed": 3}
        server_app.serve(nodes, asked(config))


def test_a_folder_of_another_run_is_refused(clock: Clock, tmp_path: Path) -> None:
    folder = RunFolder.create(deployed(tmp_path))
    other = asked(deployed(tmp_path, "seed=1"), str(folder.path))
    with pytest.raises(ResumeError, match="this differs"):
        server_app.serve(federation(clock, other), other)
    with pytest.raises(ResumeError, match="is not a run folder"):
        server_app.serve(federation(clock, other), {**other, "run-folder": str(tmp_path)})


def test_what_ends_a_run_is_said_last_with_its_exit_code(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_config = asked(deployed(tmp_path, "engine.connect_s=5"))
    told = {}
    for clients in (CLIENTS, CLIENTS - 1):
        nodes = federation(clock, run_config, clients)
        context = Context(
            run_id=77, node_id=1, node_config={}, state=RecordDict(), run_config=run_config
        )
        if clients < CLIENTS:
            with pytest.raises(FedsimError):
                server_app.main(nodes, context)
        else:
            server_app.main(nodes, context)
        told[clients] = server_lines.read(capsys.readouterr().out.splitlines()[-1])
    good, bad = told[CLIENTS], told[CLIENTS - 1]
    assert good is not None and good["exit"] == 0 and Path(good["run"]).is_dir()
    assert bad is not None and bad["exit"] == 4
    assert bad["message"].startswith("3 of 4 clients have connected within 5 s, but 4 are needed")
