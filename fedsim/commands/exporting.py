"""`fedsim export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options

_SINKS = ("tensorboard", "mlflow", "wandb-offline")


def _complete_sink(incomplete: str) -> list[str]:
    return [sink for sink in _SINKS if sink.startswith(incomplete)]


def export(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs and of sweeps.", metavar="RUN_OR_SWEEP..."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="tensorboard, mlflow or wandb-offline.",
            metavar="TOOL",
            autocompletion=_complete_sink,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="By default results/export/TOOL.")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write runs for another tool; nothing is sent anywhere."""
    with options.errors(debug):
        from fedsim.export import export as write

        place, count = write(folders, to, out)
        if as_json:
            typer.echo(json.dumps({"to": to, "folder": str(place), "runs": count}))
        else:
            typer.echo(f"{count} runs written for {to}: {place}")
