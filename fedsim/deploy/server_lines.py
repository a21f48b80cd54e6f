"""What a deployed run says in its log: one line of JSON each, between Flower's own.

fedsim: {"round": {...}, "last_round": 3}       a round report, without per-client columns
fedsim: {"exit": 4, "message": "...", "run": "/srv/runs/..."}             the last line
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from fedsim.progress import Display
from fedsim.results import json_line
from fedsim.rounds import RoundReport

_PREFIX = "fedsim: "


class LogLines(Display):
    """Writes round reports to standard output, which Flower carries to whoever follows the run."""

    def show(self, report: RoundReport, last_round: int) -> None:
        short = dataclasses.replace(report, per_client={})
        write({"round": json.loads(json_line(short)), "last_round": last_round})


def write(said: dict[str, Any]) -> None:
    """Say something."""
    print(_PREFIX + json.dumps(said), flush=True)


def read(line: str) -> dict[str, Any] | None:
    """Return what a line of the log says; None if it is none of ours."""
    if not line.startswith(_PREFIX):
        return None
    try:
        said = json.loads(line.removeprefix(_PREFIX))
    except ValueError:  # cut short, or somebody else's
        return None
    return said if isinstance(said, dict) else None


def report(said: dict[str, Any]) -> RoundReport:
    """Return the round report in a line that has one."""
    values: dict[str, Any] = said["round"]
    for name in ("train", "clients", "central"):  # JSON has no NaN, and we write null
        scores = {k: math.nan if v is None else v for k, v in values[name].items()}
        values = {**values, name: scores}
    return RoundReport(**values)
