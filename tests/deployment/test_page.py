"""The deployment page, word for word, with a network namespace for each of its three devices."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.deploy import local
from fedsim.deploy.commands import ENVIRONMENT

PAGE = Path(local.__file__).with_name("README.md")
BLOCK = re.compile(r"^```sh(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER, PORT, DEVICES = "10.77.0.1", 9443, 3

pytestmark = pytest.mark.slow


def blocks() -> list[tuple[str, str]]:
    """Return (who, commands) of the page's blocks, in order; those without a host come first."""
    return [(match[1] or "", match[2]) for match in BLOCK.finditer(PAGE.read_text())]


@pytest.fixture
def network() -> Iterator[list[str]]:
    """A bridge with the server's address, and a namespace per device; names of the namespaces."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program 'ip' (iproute2)")
    names, bridge = [f"fedsim{k}" for k in range(DEVICES)], "fedsim-bridge"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def clean() -> None:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)

    clean()
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{SERVER}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for k, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}a", "master", bridge, "up")
            ip("-n", name, "address", "add", f"10.77.0.{10 + k}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        clean()
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield names
    clean()


def test_the_page_as_it_stands(network: list[str], tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **ENVIRONMENT, "PATH": path}

    def start(who: str, prefix: list[str], commands: str) -> None:
        with (tmp_path / f"{who}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [*prefix, "sh", "-eu", "-c", commands],
                    cwd=tmp_path,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    try:
        said = ""
        for who, commands in blocks():
            if who == "operator":
                done = subprocess.run(
                    ["sh", "-eu", "-c", commands],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
                said = done.stdout
            elif who == "server":
                start(who, [], commands)
                _wait_for_server()
            elif who:
                name = network[int(who.removeprefix("device-"))]
                start(who, ["ip", "netns", "exec", name], commands)
        assert "round 2/2" in said
        assert said.count(f"replies {DEVICES}/{DEVICES}") == 2
        (model,) = (tmp_path / "federation/superlink/results/runs").glob("*/*/model.safetensors")
        assert str(model.parent) in said
        for k in range(DEVICES):
            assert "SuperNode ID" in (tmp_path / f"device-{k}.log").read_text()
    finally:
        local._end(started[1:], local.GRACE_S)
        local._end(started[:1], local.GRACE_S)


def _wait_for_server() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((SERVER, PORT)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the SuperLink does not answer")


def test_the_page_names_each_host_once() -> None:
    hosts = [who for who, _ in blocks() if who and who != "operator"]
    assert hosts == ["server", *(f"device-{k}" for k in range(DEVICES))]


def test_the_loopback_command_of_the_page(tmp_path: Path) -> None:
    (commands,) = [text for who, text in blocks() if not who]
    done = subprocess.run(
        ["sh", "-eu", "-c", commands],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "round 2/2" in done.stdout
    assert list((tmp_path / "results/runs/quickstart").glob("*/report.html"))
