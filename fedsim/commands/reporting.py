"""`fedsim report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options
from fedsim.errors import ConfigError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="A run folder or a sweep's; several, or a sweep with --compare, are put beside "
            "each other.",
            metavar="RUN_OR_SWEEP...",
        ),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the runs of one sweep beside each other.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where a comparison is written to."),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write the report.html of a run or a sweep again, or put several beside each other."""
    with options.errors(debug):
        if len(folders) > 1 or compare:
            from fedsim.compare.html import write_comparison

            written = write_comparison(folders, out)
        elif out is not None:
            raise ConfigError(
                "--out says where a comparison goes; the report of a run or a sweep lies in its "
                "own folder. Give several, or --compare"
            )
        elif (folders[0] / "sweep.yaml").is_file():
            from fedsim.sweep.report import write_sweep_report

            written = write_sweep_report(folders[0])
        else:
            from fedsim.report.html import write_report
            from fedsim.results import RunFolder

            written = write_report(RunFolder.open(folders[0]).path)
        typer.echo(json.dumps({"report": str(written)}) if as_json else written)
