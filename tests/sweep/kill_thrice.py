"""Runs a sweep that is killed again and again: `python kill_thrice.py WORD...`.

Imports once and forks a sweep for each sitting; ends with the exit code of the last one, which
nobody disturbs. Prints one line of JSON: what each sitting ended with, and at how many rounds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

SITTINGS = (("SIGKILL", 5), ("SIGINT", 12), ("SIGKILL", 24), ("SIGKILL", 40), ("", 0))
"""How each sitting ends, and after how many rounds, of all points together."""

WAIT_S = 30.0


def rounds() -> int:
    files = Path().glob("results/runs/*/*/metrics.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def points() -> list[int]:
    """Return the other processes of this program's sweeps: forks keep its command line."""
    mine = Path("/proc/self/cmdline").read_bytes()
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes() == mine and int(place.parent.name) != os.getpid():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    import sklearn.datasets  # noqa: F401  once, and not in each sitting

    from fedsim.sweep import front
    from fedsim.sweep.front import Choice

    told = []
    for end, after in SITTINGS:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = front.sweep(sys.argv[1:], None, Choice(jobs=2))
            finally:
                sys.stdout.flush()
                os._exit(code)
        until = time.monotonic() + WAIT_S
        gone, status = 0, 0
        while end and not gone and rounds() < after and time.monotonic() < until:
            time.sleep(0.002)
            gone, status = os.waitpid(pid, os.WNOHANG)
        if not gone:
            if end:
                os.kill(pid, getattr(signal, end))
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        until = time.monotonic() + 5
        while points() and time.monotonic() < until:
            time.sleep(0.01)
        told.append({"end": code, "rounds": rounds(), "orphans": len(points())})
    print(json.dumps(told), file=sys.stderr)
    return int(told[-1]["end"])


if __name__ == "__main__":
    sys.exit(main())
