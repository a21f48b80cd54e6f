"""`fedsim new`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options

_KINDS = ("strategy", "mechanism", "scenario")


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in _KINDS if kind.startswith(incomplete)]


def new(
    kind: Annotated[
        str,
        typer.Argument(
            help="strategy, mechanism or scenario.", metavar="KIND", autocompletion=_complete_kind
        ),
    ],
    name: Annotated[str, typer.Argument(help="As it will be typed.", metavar="NAME")],
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="The checkout; by default fedsim's own."),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Begin a strategy, mechanism or scenario of your own: its file, its YAML, its test."""
    with options.errors(debug):
        from fedsim import scaffold

        files, commands = scaffold.new(kind, name, root)
        if as_json:
            typer.echo(json.dumps({"files": [str(file) for file in files], "next": commands}))
            return
        for file in files:
            typer.echo(f"written: {file}")
        for command in commands:
            typer.echo(f"next:    {command}")
