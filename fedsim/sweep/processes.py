"""Where the points of a sweep run: processes of this machine, one per point."""

from __future__ import annotations

import abc
import gc
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from fedsim.sweep.point import Job, do

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
"""Each process computes on one core; as many points as there are cores run at once."""


_LATE = ("sklearn.datasets",)
"""What runs import late, and slowly; with these in the sweep's own process, forks need not."""


class Pool(abc.ABC):
    """Runs points side by side; a context manager, at whose end nothing of it runs any more."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """How many points may run at once."""

    @abc.abstractmethod
    def start(self, number: int, job: Job, log: Path) -> None:
        """Start a point; `log` takes what its process prints."""

    @abc.abstractmethod
    def ended(self) -> Iterator[tuple[int, int, str]]:
        """Yield the points that have ended since: number, exit code, and why it failed."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End all points at once, and wait until they are gone."""


def processes(jobs: int, inherit: int) -> Pool:
    """Return what runs points on this machine: forks of this process, where that is safe.

    A fork has everything imported already, which takes longer than many a small run. Threads do not
    survive it, though, so a process that has some starts its points anew.

    Args:
        jobs: How many at once.
        inherit: A file descriptor that each process keeps open: the sweep's lock.
    """
    for name in _LATE:
        importlib.import_module(name)
    try:
        alone = len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not Linux, where libraries may mind forks
        alone = False
    return Forks(jobs) if alone else Processes(jobs, inherit)


class Forks(Pool):
    """Forks of this process; they have the sweep's lock, as all that is open, from it."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: dict[int, tuple[int, Path]] = {}
        self._lives, self._life = os.pipe()  # ends for the points when this process does
        gc.freeze()  # or the forks' collectors would copy all of the memory that they share

    def __exit__(self, *_: object) -> None:
        self.kill()
        gc.unfreeze()
        os.close(self._life)
        os.close(self._lives)

    @property
    def slots(self) -> int:
        return self._jobs

    def start(self, number: int, job: Job, log: Path) -> None:
        log.parent.mkdir(exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(self._life)
                os.setsid()  # Ctrl-C is the sweep's to hear
                _print_to(log)
                code = do(job, self._lives)
            except BaseException:  # nothing of this may reach the sweep's own code
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self._running[number] = (pid, log)

    def ended(self) -> Iterator[tuple[int, int, str]]:
        for number, (pid, log) in list(self._running.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                del self._running[number]
                code = os.waitstatus_to_exitcode(status)
                yield number, code, _reason(code, log)

    def kill(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)
        for pid, _ in self._running.values():
            os.waitpid(pid, 0)
        self._running.clear()


def _print_to(log: Path) -> None:
    """Send what this process prints, from Python or from below it, to a file."""
    to, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, 0)
    for source, target in ((nothing, 0), (to, 1), (to, 2)):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


class Processes(Pool):
    """Processes that begin anew.

    Args:
        jobs: How many at once.
        inherit: A file descriptor that each process keeps open: the sweep's lock.
    """

    def __init__(self, jobs: int, inherit: int) -> None:
        self._jobs, self._inherit = jobs, inherit
        self._running: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        # A process finds code where this one does, and not in the working directory besides (-P).
        path = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
        home = str(Path(__file__).resolve().parents[2])
        self._environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": f"{home}{os.pathsep}{path}"}

    @property
    def slots(self) -> int:
        return self._jobs

    def start(self, number: int, job: Job, log: Path) -> None:
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedsim.sweep.point"],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                env=self._environment,
                pass_fds=[self._inherit],
                start_new_session=True,  # Ctrl-C is the sweep's to hear
            )
        self._running[number] = (process, log)
        try:
            if process.stdin is not None:
                process.stdin.write(job.to_json().encode() + b"\n")
                process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already, and `ended` will say why

    def ended(self) -> Iterator[tuple[int, int, str]]:
        for number, (process, log) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[number]
            _close(process)
            yield number, code, _reason(code, log)

    def kill(self) -> None:
        for process, _ in self._running.values():
            process.kill()
        for process, _ in self._running.values():
            process.wait()
            _close(process)
        self._running.clear()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass


def _reason(code: int, log: Path) -> str:
    """Return why a process ended, in one line."""
    if code == 0:
        return ""
    if code < 0:
        return f"its process was killed by {_signal(-code)}; is the memory too small for --jobs?"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"exit code {code}; see {log}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
