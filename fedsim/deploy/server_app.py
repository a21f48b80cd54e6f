"""The `ServerApp` of every deployed scenario: the same round loop, over Flower's grid.

The run's configuration holds the scenario as one string, and where its folder is on this host. The
outcome is the last line of the log, because Flower's own exit codes do not tell failure from
success: `fedsim: exit 4: 1 of 3 clients have connected ...`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.drive import drive
from fedsim.engines import recipe
from fedsim.errors import FedsimError
from fedsim.progress import PlainLines
from fedsim.results import RunFolder
from fedsim.run import Run
from fedsim.simulation import Simulation, Smoke

OUTCOME = "fedsim: exit "
"""How the line begins that tells the outcome."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a scenario over Flower's grid."""
    try:
        folder = serve(grid, context.run_config)
    except FedsimError as error:
        _say(error.exit_code, str(error).partition("\nTraceback")[0])
        raise
    except Exception as error:
        _say(1, f"{type(error).__name__}: {error}")
        raise
    _say(0, str(folder))


def serve(grid: Grid, run_config: Mapping[str, Any]) -> Path:
    """Run, or go on with, what a run configuration describes; return the run's folder.

    Raises:
        FedsimError: The run cannot be made, or ends early.
    """
    config, smoke = recipe.read(str(run_config["scenario"]))
    where = str(run_config["run-folder"])
    folder = RunFolder.open(Path(where)) if where else RunFolder.create(config, smoke=smoke)
    run = Run(
        simulation=Simulation(config, Smoke() if smoke else None, flower_grid=grid),
        folder=folder,
        extend=int(run_config["extend"]) or None,
    )
    resume = (folder.path / "checkpoint").is_dir()
    drive(run, PlainLines(interval_s=0.0), resume=resume)
    return folder.path


def _say(code: int, text: str) -> None:
    print(OUTCOME + f"{code}: " + text.strip().replace("\n", "\n  "), flush=True)
