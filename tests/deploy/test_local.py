"""The end of processes: whatever they do, none is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedsim.deploy import local
from fedsim.deploy.local import LocalDeployment, _end, descendants, free_port

STUBBORN = """
import os, signal, subprocess, sys, time
depth, folder, session = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "own"
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if depth:
    words = [sys.executable, "-S", "-c", os.environ["STUBBORN"], str(depth - 1), *sys.argv[2:]]
    subprocess.Popen(words, start_new_session=session)
open(os.path.join(folder, str(os.getpid())), "w").close()
time.sleep(600)
"""

RESTLESS = """
import os, signal, sys, time
def again(*_):
    time.sleep(0.35)
    os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"], {})
    os._exit(0)  # at once: nobody sees parent and child together
signal.signal(signal.SIGTERM, again)
print("ready", flush=True)
time.sleep(600)
"""


def stubborn(folder: Path, depth: int, session: str = "own") -> subprocess.Popen[bytes]:
    """Start a process with `depth` generations below it, none of which listens."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", STUBBORN, str(depth), str(folder), session],
        env={**os.environ, "STUBBORN": STUBBORN},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < depth + 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def pids(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("session", ["own", "same"])
def test_descendants_are_found_over_generations_and_sessions(tmp_path: Path, session: str) -> None:
    process = stubborn(tmp_path / "one", 3, session)
    try:
        assert set(descendants(process.pid)) == pids(tmp_path / "one") - {process.pid}
        assert process.pid in descendants(os.getpid())
    finally:
        _end([process], 0.0)
    assert descendants(process.pid) == []


@pytest.mark.parametrize("grace_s", [0.0, 0.3])
def test_none_is_left_of_those_that_do_not_listen(tmp_path: Path, grace_s: float) -> None:
    processes = [stubborn(tmp_path / str(k), 2) for k in range(2)]
    other = stubborn(tmp_path / "other", 0)
    started = pids(tmp_path / "0") | pids(tmp_path / "1")
    assert len(started) == 6 and all(map(lives, started))
    before = time.monotonic()
    _end(processes, grace_s)
    assert grace_s <= time.monotonic() - before < grace_s + 20
    assert not any(map(lives, started))
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    assert lives(other.pid), "nobody else's"
    _end([other], 0.0)


def test_those_who_listen_are_not_waited_for_and_not_killed() -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True);"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code + "time.sleep(600)"], stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    before = time.monotonic()
    _end([process], 60.0)
    assert time.monotonic() - before < 20
    assert process.returncode == 7
    process.stdout.close()


def test_what_is_started_to_the_last_is_ended_too() -> None:
    """As a SuperNode starts a client process just when it is asked to end."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", RESTLESS], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    session = process.pid
    _end([process], 30.0)
    process.stdout.close()
    listed = subprocess.run(
        ["ps", "-A", "-o", "sess=,stat="], capture_output=True, text=True, check=True
    )
    left = [line.split() for line in listed.stdout.splitlines()]
    assert [stat for sess, stat in left if sess == str(session) and stat[0] != "Z"] == []


def test_processes_that_have_ended_already_are_no_trouble() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    _end([process], 5.0)
    _end([], 5.0)


def test_a_second_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 1.0)
    deployment = LocalDeployment(tmp_path / "deployment", 1)
    deployment.processes["node-0"] = stubborn(tmp_path / "node", 1)
    deployment.processes["superlink"] = stubborn(tmp_path / "superlink", 1)
    before = signal.getsignal(signal.SIGINT)
    for delay in (0.2, 0.7, 1.3):
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    deployment.close()
    assert not any(map(lives, pids(tmp_path / "node") | pids(tmp_path / "superlink")))
    assert signal.getsignal(signal.SIGINT) == before
    assert deployment.processes == {}


def test_what_fails_to_start_takes_down_what_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = LocalDeployment(tmp_path / "deployment", 1)
    started = []

    def start(self: LocalDeployment) -> None:
        self.processes["superlink"] = stubborn(tmp_path / "superlink", 1)
        started.extend(pids(tmp_path / "superlink"))
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalDeployment, "start", start)
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    with pytest.raises(KeyboardInterrupt), deployment:
        raise AssertionError("it did not start")
    assert len(started) == 2 and not any(map(lives, started))


def test_a_superlink_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.deploy.commands.program", lambda _: "false")
    with (
        pytest.raises(local.SuperLinkError, match=r"does not start; see .*superlink\.log"),
        LocalDeployment(tmp_path, 1),
    ):
        raise AssertionError("it did not start")


def test_a_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
