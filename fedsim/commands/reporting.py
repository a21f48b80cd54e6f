"""`fedsim report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options


def report(
    folder: Annotated[
        Path, typer.Argument(help="A run folder, or a sweep's.", metavar="RUN_OR_SWEEP")
    ],
    debug: options.Debug = False,
) -> None:
    """Write the report.html of a run or of a sweep again, e.g. while it goes on."""
    with options.errors(debug):
        if (folder / "sweep.yaml").is_file():
            from fedsim.sweep.report import write_sweep_report

            typer.echo(write_sweep_report(folder))
            return
        from fedsim.report.html import write_report
        from fedsim.results import RunFolder

        typer.echo(write_report(RunFolder.open(folder).path))
