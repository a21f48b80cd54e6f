"""A whole deployment on this machine's loopback: SuperLink, SuperNodes, and their end.

For trying a scenario as it will run, and for tests. Every process is a real one; what differs from
several machines is only the network between them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fedsim.deploy import commands, credentials
from fedsim.deploy.commands import Link
from fedsim.deploy.submission import SuperLink, SuperLinkError

START_S = 60.0
"""How long the SuperLink may take to answer."""
GRACE_S = 4.0
"""Between asking a process to end and killing it."""
NAME = "local"


class LocalDeployment:
    """SuperLink and SuperNodes on loopback; a context manager that leaves no process behind.

    Args:
        folder: Where logs, keys and Flower's own files go.
        num_nodes: SuperNodes; node k is client k.
        secure: TLS, and only devices whose keys are registered; else plain text.
        node_config: What nodes set for themselves (`data.root=...`), node -> keys.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int,
        *,
        secure: bool = False,
        node_config: Mapping[int, Mapping[str, int | str]] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.num_nodes = num_nodes
        self.node_config = node_config or {}
        keys = self.folder / "credentials" if secure else None
        self.link = Link(host="127.0.0.1", port=free_port(), bind="127.0.0.1", credentials=keys)
        self.superlink = SuperLink(name=NAME, home=self.folder / "flwr")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalDeployment:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start everything; returns when the SuperLink answers.

        Raises:
            SuperLinkError: It does not.
        """
        home = self.folder / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(commands.connection(NAME, self.link), encoding="utf-8")
        if self.link.credentials is not None:
            credentials.write_certificates(self.link.credentials, [self.link.host])
        self.start_superlink()
        for node in range(self.num_nodes):
            if self.link.credentials is not None:
                credentials.write_node_key(self._key(node))
                self.superlink.register(self._key(node).with_name(f"node-{node}.pub"))
            self.start_node(node)

    def start_superlink(self) -> None:
        """Start the SuperLink, again if it was killed: it remembers its nodes and runs."""
        self._start("superlink", commands.superlink(self.link, self.folder / "flwr" / "state.db"))
        deadline = time.monotonic() + START_S
        while not _answers(self.link.port):
            process = self.processes["superlink"]
            if process.poll() is not None or time.monotonic() > deadline:
                log = self.folder / "superlink.log"
                raise SuperLinkError(f"the SuperLink does not start; see {log}")
            time.sleep(0.1)

    def start_node(self, node: int) -> None:
        """Start one SuperNode, again if it was killed."""
        config = {"partition-id": node, **self.node_config.get(node, {})}
        key = self._key(node) if self.link.credentials is not None else None
        command = commands.supernode(self.link, config, port=free_port(), key=key)
        self._start(f"node-{node}", command)

    def kill(self, name: str) -> None:
        """Kill a process and all that it has started, as a power cut would."""
        _end([self.processes.pop(name)], grace_s=0.0)

    def close(self) -> None:
        """End every process: asked first, killed if that does not help."""
        with _uninterrupted():
            superlink = self.processes.pop("superlink", None)
            _end(list(self.processes.values()), GRACE_S)  # first: else they would wait for it
            self.processes.clear()
            if superlink is not None:
                _end([superlink], GRACE_S)

    def _key(self, node: int) -> Path:
        return self.folder / "credentials" / f"node-{node}"

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603
                [commands.program(command[0]), *command[1:]],
                env=commands.environment(self.folder / "flwr"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle
            )


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    """Whether somebody listens at a port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no impatient second Ctrl-C, which `ps` would get as well, leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """End processes and all that they have started, by process id; none is left on return."""
    started = _family(process.pid for process in processes)
    if grace_s:
        for process in processes:
            process.terminate()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        started |= _family(started)  # they may start others to the last
        time.sleep(0.1)
    while lives := _family(started):  # and in between two looks
        started |= lives
        for pid in lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.wait()
    for process in processes:
        process.wait()


def descendants(pid: int) -> list[int]:
    """Return the ids of all living processes that one has started, and these in turn."""
    return sorted(_family([pid]) - {pid})


def _family(pids: Iterable[int]) -> set[int]:
    """Return those of some processes that live, and all that they have started.

    A process whose parent has ended is known by its session, if one of theirs began it.
    """
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,sess=,stat="],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lives: set[int] = set()
    children: dict[str, list[int]] = {}
    for line in listed.splitlines():
        child, parent, session, state = line.split()[:4]
        if state.startswith("Z"):  # it has ended, and waits for its parent to note that
            continue
        lives.add(int(child))
        for from_whom in (parent, session):
            children.setdefault(from_whom, []).append(int(child))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(str(pid), [])
    return found & lives
