"""`fedsim audit`."""

from __future__ import annotations

import json

import typer

from fedsim.commands import options
from fedsim.errors import AuditError


def audit(
    overrides: options.Overrides = None, as_json: options.Json = False, debug: options.Debug = False
) -> None:
    """Attack a scenario's privacy claim (fedsim list audit); exit 6 if the claim is refuted."""
    with options.errors(debug):
        from fedsim.auditing.drive import AUDIT, run_audit
        from fedsim.config import apart, compose
        from fedsim.progress import display

        scenario, rest = options.scenario(overrides)
        own, rest = apart.split("audit", rest)
        found = run_audit(compose(scenario, rest), own, display(as_json=as_json))
        if as_json:
            typer.echo(json.dumps(json.loads((found.folder / AUDIT).read_text(encoding="utf-8"))))
        else:
            typer.echo("\n".join(found.verdict.words))
            typer.echo(f"run:     {found.folder}\nreport:  {found.folder / 'report.html'}")
        if found.verdict.refuted:
            raise AuditError(f"REFUTED: {found.verdict.words[0]}")
