"""The `ServerApp` of every deployed scenario: the same round loop, over Flower's grid.

The run's configuration holds the scenario as one string, and where its folder is on this host.
Progress and outcome go to the log (`fedsim.deploy.server_lines`), which Flower carries to whoever
submitted the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.deploy import server_lines
from fedsim.drive import drive
from fedsim.engines import recipe
from fedsim.errors import FedsimError
from fedsim.lifecycle import Run
from fedsim.results import RunFolder, check_unchanged
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a scenario over Flower's grid."""
    try:
        folder = serve(grid, context.run_config)
    except FedsimError as error:
        _say(error.exit_code, str(error).partition("\nTraceback (most recent call last)")[0])
        raise
    except Exception as error:
        _say(1, f"internal: {type(error).__name__}: {error}")
        raise
    _say(0, "", folder)


def serve(grid: Grid, run_config: Mapping[str, Any]) -> Path:
    """Run, or go on with, what a run configuration describes; return the run's folder.

    Raises:
        FedsimError: The run cannot be made, or ends early.
    """
    config, smoke = recipe.read(str(run_config["scenario"]))
    where = str(run_config["run-folder"])
    folder = RunFolder.open(Path(where)) if where else RunFolder.create(config, smoke=smoke)
    check_unchanged(folder.config(), config)
    run = Run(
        simulation=Simulation(config, Smoke() if smoke else None, flower_grid=grid),
        folder=folder,
        extend=int(run_config["extend"]) or None,
    )
    # A folder that was made elsewhere is read and checked, whether the run has begun or not.
    drive(run, server_lines.LogLines(), resume=bool(where) and not smoke)
    return folder.path


def _say(code: int, message: str, folder: Path | None = None) -> None:
    run = "" if folder is None else str(folder.resolve())
    server_lines.write({"exit": code, "message": message.strip(), "run": run})
