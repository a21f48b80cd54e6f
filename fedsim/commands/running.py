"""`fedsim run` and `fedsim resume`."""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.commands import options
from fedsim.errors import ResumeError
from fedsim.garbage import uncollected

if TYPE_CHECKING:
    from fedsim.lifecycle import Run


def run(
    overrides: options.Overrides = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="One round, two clients, one batch: does it run?")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a scenario: thousands of virtual clients in this process."""
    with options.errors(debug):
        with uncollected():
            from fedsim.config import compose
            from fedsim.lifecycle import Run
            from fedsim.results import RunFolder
            from fedsim.simulation import Simulation
            from fedsim.smoke import Smoke

        scenario, rest = options.scenario(overrides)
        config = compose(scenario, rest)
        with closing(Simulation(config, Smoke() if smoke else None)) as simulation:
            simulation.loop  # noqa: B018  build and check everything before a folder is made
            folder = RunFolder.create(config, smoke=smoke)
            _go(Run(simulation=simulation, folder=folder), as_json, resume=False)


def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Refused if they change the run.", hidden=True)
    ] = None,
    extend: Annotated[
        str | None, typer.Option("--extend", help="Run longer, e.g. --extend rounds=100.")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Go on with a run that was stopped, from its latest checkpoint."""
    with options.errors(debug):
        with uncollected():
            from fedsim.config import compose
            from fedsim.config.overrides import parse
            from fedsim.deploy.sitting import is_deployed
            from fedsim.lifecycle import Run
            from fedsim.results import RunFolder, check_unchanged
            from fedsim.simulation import Simulation

        opened = RunFolder.open(folder)
        config = opened.config()
        if is_deployed(config):
            path = shlex.quote(str(folder))
            raise ResumeError(
                f"{folder} was deployed; go on with: fedsim deploy --resume {path} --local N, on N "
                "devices of this machine, or scenario=... --to NAME --resume RUN as it was started"
            )
        if overrides:
            for group, name in parse(overrides)[0].items():
                raise ResumeError(f"{group}={name}: a run keeps its parts; start a new run instead")
            asked = compose(str(folder / "config.yaml"), overrides)
            check_unchanged(config, asked)
            config = asked  # it may differ in what leaves the result alone: checkpoint.every
        longer = None if extend is None else options.rounds(extend)
        run = Run(simulation=Simulation(config), folder=opened, extend=longer)
        _go(run, as_json, resume=True)


def _go(run: Run, as_json: bool, *, resume: bool) -> None:
    """Drive a run to its end, show it, write its report; exit 130 if it was interrupted."""
    with uncollected():
        from fedsim.drive import drive, how_to_resume
        from fedsim.progress import display

    with _Interrupt() as interrupt:
        run.stop = interrupt
        last = drive(run, display(as_json=as_json), resume=resume)
    if not as_json:
        path = run.folder.path
        typer.echo(f"privacy: {run.simulation.protection.statement()}\nrun:     {path}")
        typer.echo(f"report:  {path / 'report.html'}")
    if last is None:
        done = (
            f"nothing to do: the run has finished; {how_to_resume(run)} --extend rounds=N goes on"
        )
        typer.echo(done, err=as_json)
    elif last.server_round < run.simulation.last_round:
        typer.echo(f"interrupted; go on with: {how_to_resume(run)}", err=True)
        raise typer.Exit(130)


class _Interrupt:
    """The first Ctrl-C ends the run after the current round, with a checkpoint; the second, now."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> _Interrupt:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not `typer.echo`: a handler may run in the middle of another write to the same stream.
        os.write(2, b"\nfinishing this round; press Ctrl-C again to stop at once\n")
