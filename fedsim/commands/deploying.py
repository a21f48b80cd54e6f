"""`fedsim deploy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options
from fedsim.errors import ConfigError


def deploy(
    overrides: options.Overrides = None,
    local: Annotated[
        int | None,
        typer.Option("--local", metavar="N", min=1, help="Start N SuperNodes on this machine."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NAME", help="A SuperLink of $FLWR_HOME/config.toml."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="DIR", help="Write what real hosts need, and a runbook."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="With --write: how devices reach the SuperLink."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="With --write: the SuperLink's.")
    ] = 9443,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, help="With --write and --to: one client per device."),
    ] = None,
    secure: Annotated[
        bool | None,
        typer.Option(
            "--secure/--insecure",
            help="TLS, and registered devices only; by default, wherever it is not loopback.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run, from its checkpoint."),
    ] = None,
    extend: Annotated[
        str | None, typer.Option("--extend", help="With --resume: run longer, e.g. rounds=100.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="One round, two clients, one batch: does it run?")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a scenario on real devices: Flower SuperNodes, here or anywhere."""
    with options.errors(debug):
        from fedsim.deploy import front
        from fedsim.progress import display

        if sum(choice is not None for choice in (local, to, write)) != 1:
            raise ConfigError("one of --local N, --to NAME and --write DIR says where; give one")
        options.refuse_idle(
            {
                "--host": host and write is None,
                "--devices": devices is not None and local is not None,
                "--secure/--insecure": secure is not None and to is not None,
                "--smoke": smoke and (write is not None or resume is not None),
                "--resume": resume is not None and write is not None,
                "--extend": extend is not None and resume is None,
            }
        )
        words = options.scenario(overrides) if overrides or resume is None else None
        longer = 0 if extend is None else options.rounds(extend)
        if write is not None:
            told = front.write(write, words, host or ["127.0.0.1"], port, devices, secure)
            wrote = {"written": str(write), "next": str(write / "README.md")}
            typer.echo(json.dumps(wrote) if as_json else told)
            return
        shown = display(as_json=as_json)
        if local is not None:
            told = front.on_loopback(words, local, bool(secure), resume, longer, smoke, shown)
        else:
            told = front.on_superlink(words, str(to), devices, resume, longer, smoke, shown)
        if not as_json:
            typer.echo(told)
