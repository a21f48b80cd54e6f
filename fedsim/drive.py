"""Drives a run to its end: shows it, logs it, writes its report.

The command line does this in its own process; of a deployed run, Flower's server app does.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import BudgetError
from fedsim.garbage import frozen, uncollected
from fedsim.lifecycle import Run
from fedsim.progress import Display
from fedsim.rounds import RoundReport


def drive(run: Run, display: Display, *, resume: bool) -> RoundReport | None:
    """Run what is left of a run; return its last round, or None if there was nothing to do.

    Whatever ends it early is logged in the run's folder, and carries a note on how to go on.
    """
    try:
        last = run_rounds(run, display, resume=resume)
    except BudgetError:
        _report(run)
        raise
    _report(run)
    return last


def _report(run: Run) -> None:
    with uncollected():
        from fedsim.report import html  # matplotlib takes half a second, which no round waits for

        html.write_report(run.folder.path)


def run_rounds(run: Run, display: Display, *, resume: bool) -> RoundReport | None:
    """Do all that `drive` does but the report."""
    last = None
    with frozen(), _logged(run), display as shown:
        try:
            for last in run.resume() if resume else run.start():
                shown.show(last, run.simulation.last_round)
        finally:
            run.simulation.close()
    return last


def how_to_resume(run: Run) -> str:
    """Return the command that goes on with a run."""
    path = shlex.quote(str(run.folder.path))
    deployed = run.simulation.flower_grid is not None
    return f"fedsim deploy --resume {path}" if deployed else f"fedsim resume {path}"


@contextmanager
def _logged(run: Run) -> Iterator[None]:
    """Log to the run's folder, and add to whatever ends the run early how to go on from there."""
    path: Path = run.folder.path
    logger = logging.getLogger("fedsim")
    handler = logging.FileHandler(path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as error:
        error.add_note(f"go on from the latest checkpoint with: {how_to_resume(run)}")
        raise
    except BudgetError as error:
        logger.warning("%s", error)
        raise
    except Exception as error:
        logger.exception("the run ended with an error")
        error.add_note(f"The traceback is in {path / 'log.txt'}")
        raise
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
        handler.close()
