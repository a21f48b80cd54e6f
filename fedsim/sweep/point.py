"""One point of a sweep, in a process of its own: a plain run in a folder that was chosen before.

`python -m fedsim.sweep.point` reads its job from standard input, which stays open as long as the
sweep lives: when that ends, however it ends, so does the point, at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsim.config import compose
from fedsim.drive import drive
from fedsim.errors import BudgetError, FedsimError, ResumeError
from fedsim.lifecycle import Run
from fedsim.progress import Display
from fedsim.results import CONFIG, OVERRIDES, SUMMARY, RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.sweep.outcome import read_json
from fedsim.sweep.pruning import Rule

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a point's process is told.

    Attributes:
        scenario, overrides: Of the run.
        hash: That its configuration must have.
        run: Its folder; gone on with if something has run in it.
        stop: While this file is there, the run stops after its round, with a checkpoint.
        rule: By which it stops itself, too, as a `pruning.Rule`; empty for none.
    """

    scenario: str
    overrides: tuple[str, ...]
    hash: str
    run: str
    stop: str
    rule: str = ""

    def to_json(self) -> str:
        """Return one line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "overrides": tuple(values["overrides"])})


class _Silent(Display):
    """The sweep reads the run folder; nothing else needs to be said."""

    def show(self, report: RoundReport, last_round: int) -> None:
        return None


def run_point(job: Job) -> tuple[int, str]:
    """Run a point, or what is left of it.

    Returns:
        The exit code that `fedsim run` would have, and the first line of what went wrong.
    """
    try:
        return _run(job)
    except FedsimError as error:
        return error.exit_code, str(error).strip().split("\n")[0]
    except Exception as error:  # whatever one point fails with, the others go on
        traceback.print_exc()
        first = (str(error).strip() or "no message").split("\n")[0]
        return 1, f"internal: {type(error).__name__}: {first}"


def _run(job: Job) -> tuple[int, str]:
    if Path(job.stop).exists():
        return INTERRUPTED, "stopped before it began"
    config = compose(job.scenario, job.overrides)
    if config.hash != job.hash:
        raise ResumeError(f"scenario {job.scenario} was changed while the sweep went on")
    # What `env.json` is to hold: the command that repeats this run alone.
    sys.argv = ["fedsim", "run", f"scenario={job.scenario}", *job.overrides]
    run, stop = Path(job.run), Path(job.stop)
    rule = Rule.from_json(job.rule) if job.rule else None

    def asked() -> bool:
        return stop.exists() or (rule is not None and rule.stops(run))

    there = all((run / name).is_file() for name in (CONFIG, OVERRIDES))
    if there and RunFolder.open(run).config().hash != job.hash:
        raise ResumeError(f"{run} is a run of another configuration; remove it to run this again")
    with closing(Simulation(config)) as simulation:
        simulation.loop  # noqa: B018  build and check everything before a folder is made
        folder = RunFolder.open(run) if there else RunFolder.create(config, at=run)
        drive(Run(simulation=simulation, folder=folder, stop=asked), _Silent(), resume=there)
    status = str(read_json(run / SUMMARY).get("status"))
    code = {"finished": 0, "interrupted": INTERRUPTED}.get(status, BudgetError.exit_code)
    return code, status if code else ""


def do(job: Job, life: int) -> int:
    """Run a point in a process of its own, as long as the sweep lives; return the exit code.

    Args:
        job: The point.
        life: A file descriptor that the sweep holds the other end of.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep hears it, and says what to do
    threading.Thread(target=_end_with_the_sweep, args=(life,), daemon=True).start()
    code, reason = run_point(job)
    if code:
        print(f"error: {reason}", file=sys.stderr, flush=True)
    return code


def _end_with_the_sweep(life: int) -> None:
    while os.read(life, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(do(Job.from_json(sys.stdin.buffer.readline()), 0))
