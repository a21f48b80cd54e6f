"""What `fedsim deploy --write` leaves, and that the scripts do what they say."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedsim.config import compose
from fedsim.deploy import front, runbook
from fedsim.deploy.sitting import EVERY_ROUND, configure
from fedsim.errors import ConfigError

STUB = """\
#!{python} -S
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
told = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
names = ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_HOME")
seen = {{name: os.environ.get(name) for name in names}}
with open(os.path.join(here, "told"), "a") as file:
    file.write(json.dumps([told, os.getcwd(), seen]) + "\\n")
sys.exit(int(os.environ.get("STUB_EXIT", "0")))
"""
OURS = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secure deployment of three devices, in a folder whose name has a space and a quote."""
    folder = tmp_path_factory.mktemp("real hosts") / "it's here"
    front.write(folder, ("quickstart", []), ["fl.example.org", "10.0.0.5"], 9443, 3, None)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "loopback"
    front.write(folder, ("quickstart", []), ["127.0.0.1"], 9000, 2, None)
    return folder


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of programs that write down how they are called."""
    for name in ("flower-superlink", "flower-supernode", "flwr"):
        (tmp_path / name).write_text(STUB.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def sh(
    script: Path, stubs: Path, code: int = 0
) -> list[tuple[list[str], str, dict[str, str | None]]]:
    """Run a script from another folder; return what the stubs were called with."""
    done = subprocess.run(
        ["sh", str(script)],
        cwd="/",
        env={"PATH": f"{stubs}:{os.environ['PATH']}", "STUB_EXIT": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    told = [json.loads(line) for line in (stubs / "told").read_text().splitlines()]
    return [(words, place, environment) for words, place, environment in told]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_written(written: Path, plain: Path) -> None:
    device = {"start.sh", "fedsim-supernode.service"}
    assert files(written) == {
        "README.md",
        *(f"superlink/{name}" for name in ("ca.crt", "server.crt", "server.key")),
        *("superlink/start.sh", "superlink/fedsim-superlink.service"),
        *(f"device-{k}/{name}" for k in range(3) for name in ("key", "ca.crt", *device)),
        *(f"operator/{name}" for name in ("ca.crt", "config.toml", "scenario.yaml", "register.sh")),
        *(f"operator/device-{k}.pub" for k in range(3)),
    }
    assert files(plain) == {
        *("README.md", "superlink/start.sh", "superlink/fedsim-superlink.service"),
        *(f"device-{k}/{name}" for k in range(2) for name in device),
        *("operator/config.toml", "operator/scenario.yaml"),
    }


def test_secrets_are_for_their_owner_alone_and_go_nowhere_else(written: Path) -> None:
    for name in ("superlink/server.key", "device-0/key", "device-1/key", "device-2/key"):
        assert stat.S_IMODE((written / name).stat().st_mode) == 0o600
    private = {
        name for name in files(written) if "PRIVATE KEY" in (written / name).read_text("latin-1")
    }
    assert private == {"superlink/server.key", "device-0/key", "device-1/key", "device-2/key"}
    assert len({(written / f"device-{k}/key").read_text() for k in range(3)}) == 3
    for name in ("device-0/ca.crt", "operator/ca.crt"):
        assert (written / name).read_bytes() == (written / "superlink/ca.crt").read_bytes()


def test_scripts_are_of_plain_sh_and_executable(written: Path, plain: Path) -> None:
    scripts = [*written.rglob("*.sh"), *plain.rglob("*.sh")]
    assert len(scripts) == 8
    for script in scripts:
        assert script.read_text().startswith("#!/bin/sh\n")
        assert os.access(script, os.X_OK)
        done = subprocess.run(["sh", "-n", str(script)], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_superlinks_script(written: Path, stubs: Path) -> None:
    here = str(written / "superlink")
    ((words, place, environment),) = sh(written / "superlink/start.sh", stubs)
    assert words == [
        *("flower-superlink", "--host", "0.0.0.0", "--port", "9443"),  # noqa: S104
        *("--database", f"{here}/state.db", "--disable-runtime-dependency-installation"),
        *("--ssl-ca-certfile", f"{here}/ca.crt", "--ssl-certfile", f"{here}/server.crt"),
        *("--ssl-keyfile", f"{here}/server.key", "--enable-supernode-auth"),
    ]
    assert place == here, "the runs' folders are made there"
    assert environment == {**OURS, "FLWR_HOME": None}


def test_a_devices_script(written: Path, stubs: Path) -> None:
    here = str(written / "device-2")
    ((words, place, environment),) = sh(written / "device-2/start.sh", stubs)
    assert words == [
        *("flower-supernode", "--superlink", "fl.example.org:9443", "--port", "9094"),
        *("--node-config", "partition-id=2", "--root-certificates", f"{here}/ca.crt"),
        *("--auth-supernode-private-key", f"{here}/key"),
    ]
    assert place == here
    assert environment == {**OURS, "FLWR_HOME": None}


def test_a_device_adds_its_data_as_the_runbook_says(written: Path, stubs: Path) -> None:
    (example,) = re.findall(r"'partition-id=0 data\.root=\"[^']*'", readme(written))
    script = written / "device-0" / "own.sh"
    text = (written / "device-0/start.sh").read_text()
    script.write_text(text.replace(" partition-id=0 ", f" {example} "))
    try:
        ((words, _, _),) = sh(script, stubs)
    finally:
        script.unlink()
    assert words[words.index("--node-config") + 1] == 'partition-id=0 data.root="/srv/data"'


def test_plain_scripts(plain: Path, stubs: Path) -> None:
    sh(plain / "superlink/start.sh", stubs)
    (superlink, _, _), (node, _, _) = sh(plain / "device-1/start.sh", stubs)
    assert superlink == [
        *("flower-superlink", "--host", "127.0.0.1", "--port", "9000"),
        *("--database", f"{plain}/superlink/state.db"),
        *("--disable-runtime-dependency-installation", "--insecure"),
    ]
    assert node == [
        *("flower-supernode", "--superlink", "127.0.0.1:9000", "--port", "9094"),
        *("--node-config", "partition-id=1", "--insecure"),
    ]


def test_devices_are_registered(written: Path, stubs: Path) -> None:
    operator = written / "operator"
    told = sh(operator / "register.sh", stubs)
    assert [words for words, _, _ in told] == [
        [
            *("flwr", "supernode", "register", f"{operator}/device-{k}.pub", "federation"),
            *("--name", f"device-{k}"),
        ]
        for k in range(3)
    ]
    assert [environment for _, _, environment in told] == [{**OURS, "FLWR_HOME": str(operator)}] * 3


def test_a_registration_that_fails_ends_there(written: Path, stubs: Path) -> None:
    assert len(sh(written / "operator/register.sh", stubs, code=1)) == 1


def test_a_script_that_is_carried_elsewhere_works_there(
    written: Path, stubs: Path, tmp_path: Path
) -> None:
    there = tmp_path / "another $HOME `place`"
    (written / "device-0").rename(there)
    try:
        ((words, place, _),) = sh(there / "start.sh", stubs)
    finally:
        there.rename(written / "device-0")
    assert words[-1] == f"{there}/key" and place == str(there)


def test_units_start_the_scripts(written: Path) -> None:
    for folder, name in [
        ("superlink", "superlink"),
        *((f"device-{k}", "supernode") for k in "012"),
    ]:
        unit = (written / folder / f"fedsim-{name}.service").read_text()
        sections = re.findall(r"^\[(\w+)\]$", unit, re.MULTILINE)
        assert sections == ["Unit", "Service", "Install"]
        lines = dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"^\w+=", line))
        assert lines["ExecStart"] == f"/bin/sh /opt/fedsim/{folder}/start.sh"
        assert lines["Restart"] == "always"
        assert lines["WantedBy"] == "multi-user.target"
        assert f"systemctl enable --now /opt/fedsim/{folder}/fedsim-{name}.service" in unit


def test_the_operators_files(written: Path, plain: Path) -> None:
    told = tomllib.loads((written / "operator/config.toml").read_text())["superlink"]
    assert told == {
        "default": runbook.NAME,
        runbook.NAME: {
            "address": "fl.example.org:9443",
            "root-certificates": str(written / "operator/ca.crt"),
        },
    }
    assert Path(told[runbook.NAME]["root-certificates"]).is_file()
    told = tomllib.loads((plain / "operator/config.toml").read_text())["superlink"]
    assert told[runbook.NAME] == {"address": "127.0.0.1:9000", "insecure": True}


def test_the_scenario_that_is_written_is_the_run(written: Path) -> None:
    asked = configure("quickstart", [], 3)
    path = str(written / "operator/scenario.yaml")
    assert compose(path).hash == asked.hash
    assert configure(path, [], None).hash == configure(path, [], 3).hash == asked.hash
    assert configure(path, ["engine.connect_s=9"], 3).values["engine"]["connect_s"] == 9
    assert {"engine=deployment", EVERY_ROUND} <= set(asked.overrides)


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_runbooks_steps_are_numbered_and_name_what_exists(written: Path, plain: Path) -> None:
    for folder, steps in ((written, 5), (plain, 4)):
        text = readme(folder)
        numbers = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
        assert numbers == [str(k) for k in range(1, steps + 1)]
        for name in re.findall(r"`(?:sh )?((?:superlink|device-K)/[\w./-]*)`", text):
            if not name.startswith("superlink/results"):
                assert (folder / name.replace("device-K", "device-0")).exists(), name
        assert "  \n" not in text and "\n\n\n" not in text
    assert "Plain text, and any device is let in" in readme(plain)
    assert "register" not in readme(plain) and "secrets" not in readme(plain)
    assert "Plain text" not in readme(written)


def test_the_runbooks_commands_are_read_by_a_shell_as_they_are_meant(
    written: Path, stubs: Path
) -> None:
    (stubs / "fedsim").write_text(STUB.format(python=sys.executable))
    (stubs / "fedsim").chmod(0o755)
    commands = re.findall(r"^       (.*)$", readme(written), re.MULTILINE)
    script = stubs / "commands.sh"
    script.write_text("\n".join(commands) + "\n")
    *registered, (words, _, environment) = sh(script, stubs)
    assert len(registered) == 3
    assert words == [
        *("fedsim", "deploy", f"scenario={written}/operator/scenario.yaml"),
        *("--to", "federation"),
    ]
    assert environment["FLWR_HOME"] == str(written / "operator")


def test_insecure_is_for_loopback_only(tmp_path: Path) -> None:
    for hosts in (["fl.example.org"], ["127.0.0.1", "10.0.0.5"]):
        with pytest.raises(ConfigError, match=r"--insecure: .* is not loopback"):
            front.write(tmp_path / "x", ("quickstart", []), hosts, 9443, 2, False)
    assert not (tmp_path / "x").exists()


def test_loopback_may_be_secure(tmp_path: Path) -> None:
    front.write(tmp_path / "x", ("quickstart", []), ["127.0.0.1"], 9443, 1, True)
    assert (tmp_path / "x/superlink/server.key").is_file()
    assert "--insecure" not in (tmp_path / "x/device-0/start.sh").read_text()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="it is not empty; name a new folder"):
        front.write(tmp_path, ("quickstart", []), ["127.0.0.1"], 9443, 2, None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match=r"--write .*mine.*; name another folder"):
        front.write(tmp_path / "mine" / "x", ("quickstart", []), ["127.0.0.1"], 9443, 2, None)


@pytest.mark.parametrize(
    "host", ["", "https://fl.example.org", "fl.example.org:9443", "a b", "exämple.org", "-x", "a."]
)
def test_a_host_is_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="expected a name or an address alone"):
        front.write(tmp_path / "x", ("quickstart", []), [host], 9443, 2, None)
    assert not (tmp_path / "x").exists()


def test_a_large_population_needs_a_number_of_devices(tmp_path: Path) -> None:
    words = ("quickstart", ["partition.num_clients=1001", "partition=iid"])
    with pytest.raises(ConfigError, match=r"--devices: the scenario has 1,001 clients"):
        front.write(tmp_path / "x", words, ["127.0.0.1"], 9443, None, None)
