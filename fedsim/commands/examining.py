"""`fedsim doctor`."""

from __future__ import annotations

import dataclasses
import json

import typer

from fedsim.commands import options


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Say what this machine has: versions, devices, threads, Ray, TLS; exit 1 on a problem."""
    with options.errors(debug):
        from fedsim.doctor import examine

        found = examine()
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found]))
        else:
            width = max(len(finding.topic) for finding in found)
            for finding in found:
                mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[finding.level]
                typer.echo(f"{mark}  {finding.topic:<{width}}  {finding.words}")
        if any(finding.level == "problem" for finding in found):
            raise typer.Exit(1)
