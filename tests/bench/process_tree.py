"""CPU time of a process and of all that it has started, daemons of Ray's included."""

from __future__ import annotations

import os
import threading
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
        self._lock = threading.Lock()

    def watch(self, every_s: float = 0.1) -> None:
        """Look again and again from now on, for processes that live shorter than a round."""

        def look() -> None:
            while True:
                self.cpu_seconds()
                time.sleep(every_s)

        threading.Thread(target=look, daemon=True).start()

    def cpu_seconds(self) -> float:
        """Return CPU-seconds of all marked processes so far."""
        with self._lock:
            self._look()
            # Ticks are hundredths of a second: too coarse for a round of the cohort engine.
            return time.process_time() + sum(self._ticks.values()) / TICKS

    def _look(self) -> None:
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                if self.mark in (process / "environ").read_bytes():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    self._ticks[process.name] = int(fields[11]) + int(fields[12])
            except OSError:  # gone, or somebody else's
                continue
