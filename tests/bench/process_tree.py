"""CPU time of a process and of all that it has started, daemons of Ray's included."""

from __future__ import annotations

import os
import time
from pathlib import Path

MARK = "FEDSIM_BENCH_MARK"
"""A variable that the process was started with; what it starts inherits it."""

TICKS = os.sysconf("SC_CLK_TCK")


class ProcessTree:
    """Adds up CPU time; what a process had used when last seen counts after its end."""

    def __init__(self) -> None:
        self.mark = f"{MARK}={os.environ[MARK]}".encode()
        self._ticks: dict[str, int] = {}

    def cpu_seconds(self) -> float:
        """Return CPU-seconds of all marked processes so far."""
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                if self.mark in (process / "environ").read_bytes():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    self._ticks[process.name] = int(fields[11]) + int(fields[12])
            except OSError:  # gone, or somebody else's
                continue
        # Ticks are hundredths of a second: too coarse for a round of the cohort engine.
        return time.process_time() + sum(self._ticks.values()) / TICKS
