"""The commands. Heavy imports live inside them, so that `--help` and `list` stay under a second.

Exit codes: 0 done, 2 configuration error, 3 budget reached, 4 too few clients, 5 resume mismatch,
6 a privacy claim was refuted by an audit, 130 interrupted (checkpoint kept), 1 anything else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedsim.errors import AuditError, ConfigError, FedsimError, ResumeError

if TYPE_CHECKING:
    from fedsim.run import Run

app = typer.Typer(
    help="Federated and privacy-preserving learning: simulate, plan, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="scenario=<name or path>, then key=value overrides in Hydra's grammar, "
        "e.g. strategy=fedau client.lr=0.05",
        metavar="scenario=NAME [KEY=VALUE]...",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def run(
    overrides: Overrides = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="One round, two clients, one batch: does it run?")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a scenario: thousands of virtual clients in this process."""
    with _errors(debug):
        from fedsim.config import compose
        from fedsim.results import RunFolder
        from fedsim.run import Run
        from fedsim.simulation import Simulation, Smoke

        scenario, rest = _scenario(overrides)
        config = compose(scenario, rest)
        with closing(Simulation(config, Smoke() if smoke else None)) as simulation:
            simulation.loop  # noqa: B018  build and check everything before a folder is made
            folder = RunFolder.create(config, smoke=smoke)
            _go(Run(simulation=simulation, folder=folder), as_json, resume=False)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Refused if they change the run.", hidden=True)
    ] = None,
    extend: Annotated[
        str | None, typer.Option("--extend", help="Run longer, e.g. --extend rounds=100.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped, from its latest checkpoint."""
    with _errors(debug):
        from fedsim.config import compose
        from fedsim.config.overrides import parse
        from fedsim.deploy.sitting import is_deployed
        from fedsim.results import RunFolder, check_unchanged
        from fedsim.run import Run
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
        longer = None if extend is None else _rounds(extend)
        run = Run(simulation=Simulation(config), folder=opened, extend=longer)
        _go(run, as_json, resume=True)


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="scenario=<names>, then overrides in Hydra's grammar, of which some have several "
            "values: privacy.epsilon=0.5,1,2 'seed=range(0,5)' 'strategy=glob(fed*)'. The word "
            "'and' stands between grids.",
            metavar="scenario=NAME[,NAME]... [KEY=VALUE[,VALUE]...]... [and ...]",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs at once; by default, one per core."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster (extra: ray)."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="SWEEP", help="Go on with a sweep, from its folder."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the sweep's folder; by default, the scenario's."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run points again that an earlier sweep has run.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a scenario over a grid of values, several runs at once, and compare them.

    Typed again, the command goes on where it stopped; points that have been run are left alone.
    """
    with _errors(debug):
        # One core for each point; libraries read this once, when they are loaded.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from fedsim.sweep import front

        chosen = front.Choice(jobs=jobs, ray=ray, name=name, fresh=fresh, as_json=as_json)
        if code := front.sweep(words or [], resume, chosen):
            raise typer.Exit(code)


@app.command()
def plan(overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Say what a scenario would cost before it is run: messages, bytes, time."""
    with _errors(debug):
        from fedsim.config import compose
        from fedsim.plan import plan as make_plan
        from fedsim.simulation import Simulation

        scenario, rest = _scenario(overrides)
        with closing(Simulation(compose(scenario, rest))) as simulation:
            cost = make_plan(simulation)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(cost)))
            return
        typer.echo(
            f"clients      {cost.num_clients:,}, {cost.clients_per_round:,.1f} a round, "
            f"{cost.rounds:,} rounds\n"
            f"model        {cost.parameters:,} parameters, {cost.model_bytes / 1e6:,.3f} MB\n"
            f"messages     {cost.messages:,}, {cost.megabytes:,.1f} MB over all rounds\n"
            f"engine       {cost.engine}\n"
            f"time         about {cost.total_seconds:,.1f} s on this device "
            f"({1000 * cost.round_seconds:,.1f} ms per training round, measured)\n"
            f"privacy      {cost.privacy}"
        )


@app.command()
def audit(overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Attack a scenario's privacy claim (fedsim list audit); exit 6 if the claim is refuted."""
    with _errors(debug):
        from fedsim.auditing.drive import AUDIT, run_audit
        from fedsim.config import apart, compose
        from fedsim.progress import display

        scenario, rest = _scenario(overrides)
        own, rest = apart.split("audit", rest)
        found = run_audit(compose(scenario, rest), own, display(as_json=as_json))
        if as_json:
            typer.echo(json.dumps(json.loads((found.folder / AUDIT).read_text(encoding="utf-8"))))
        else:
            typer.echo("\n".join(found.verdict.words))
            typer.echo(f"run:     {found.folder}\nreport:  {found.folder / 'report.html'}")
        if found.verdict.refuted:
            raise AuditError(f"REFUTED: {found.verdict.words[0]}")


@app.command()
def deploy(
    overrides: Overrides = None,
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a scenario on real devices: Flower SuperNodes, here or anywhere."""
    with _errors(debug):
        from fedsim.deploy import front
        from fedsim.progress import display

        if sum(choice is not None for choice in (local, to, write)) != 1:
            raise ConfigError("one of --local N, --to NAME and --write DIR says where; give one")
        _refuse_idle(
            {
                "--host": host and write is None,
                "--devices": devices is not None and local is not None,
                "--secure/--insecure": secure is not None and to is not None,
                "--smoke": smoke and (write is not None or resume is not None),
                "--resume": resume is not None and write is not None,
                "--extend": extend is not None and resume is None,
            }
        )
        words = _scenario(overrides) if overrides or resume is None else None
        longer = 0 if extend is None else _rounds(extend)
        if write is not None:
            told = front.write(write, words, host or ["127.0.0.1"], port, devices, secure)
            typer.echo(told)
            return
        shown = display(as_json=as_json)
        if local is not None:
            told = front.on_loopback(words, local, bool(secure), resume, longer, smoke, shown)
        else:
            told = front.on_superlink(words, str(to), devices, resume, longer, smoke, shown)
        if not as_json:
            typer.echo(told)


@app.command("list")
def list_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A group (scenarios, strategy, data, ...); or scenario=NAME with --keys.",
            metavar="[GROUP]",
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="With scenario=NAME: every key, its type and range.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List scenarios and the parts that they are composed of."""
    with _errors(debug):
        from fedsim import catalog

        if keys or any("=" in word for word in words or []):
            from fedsim.config import compose
            from fedsim.config.keys import keys as keys_of

            scenario, rest = _scenario(words)
            rows = keys_of(compose(scenario, rest))
            if as_json:
                typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], default=str))
                return
            width = max(len(row.path) for row in rows)
            for row in rows:
                typer.echo(f"{row.path:<{width}}  {row.value!r:<14}  {row.type}")
            return
        groups = _groups(words, (*catalog.groups(), *catalog.APART))
        found = {
            group: catalog.scenarios() if group == "scenarios" else catalog.entries(group)
            for group in groups
        }
        if as_json:
            listed = {g: {e.name: e.summary for e in found[g]} for g in groups}
            typer.echo(json.dumps(listed))
            return
        for group, entries in found.items():
            typer.echo(f"{group}:")
            width = max((len(entry.name) for entry in entries), default=0)
            for entry in entries:
                typer.echo(f"  {entry.name:<{width}}  {entry.summary}")


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="A run folder, or a sweep's.", metavar="RUN_OR_SWEEP")
    ],
    debug: Debug = False,
) -> None:
    """Write the report.html of a run or of a sweep again, e.g. while it goes on."""
    with _errors(debug):
        if (folder / "sweep.yaml").is_file():
            from fedsim.sweep.report import write_sweep_report

            typer.echo(write_sweep_report(folder))
            return
        from fedsim.report.html import write_report
        from fedsim.results import RunFolder

        typer.echo(write_report(RunFolder.open(folder).path))


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Federated and privacy-preserving learning: simulate, plan, report."""
    if version:
        from fedsim import __version__

        typer.echo(__version__)
        raise typer.Exit


def _go(run: Run, as_json: bool, *, resume: bool) -> None:
    """Drive a run to its end, show it, write its report; exit 130 if it was interrupted."""
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


def _scenario(words: Sequence[str] | None) -> tuple[str, list[str]]:
    """Split `scenario=NAME` from the overrides."""
    named = [word for word in words or [] if word.startswith("scenario=")]
    if len(named) != 1:
        got = " ".join(words or []) or "nothing"
        raise ConfigError(
            f"one scenario=NAME is needed, got: {got}; e.g. scenario=quickstart "
            "(fedsim list scenarios shows them all)"
        )
    return named[0].removeprefix("scenario="), [word for word in words or [] if word not in named]


def _groups(words: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    from fedsim.errors import did_you_mean

    everything = ["scenarios", *known]
    plural = {"strategies": "strategy", "models": "model", "engines": "engine"}
    plural |= {"partitions": "partition", "clients": "client", "topologies": "topology"}
    plural |= {"attacks": "attack", "audits": "audit"}
    chosen = [plural.get(word, word) for word in words or everything]
    for word in chosen:
        if word not in everything:
            raise ConfigError(
                f"there is no group {word!r}{did_you_mean(word, everything)}; "
                f"groups: {', '.join(everything)}"
            )
    return chosen


def _refuse_idle(idle: Mapping[str, object]) -> None:
    """Refuse options that would do nothing with the others that were given."""
    if options := [option for option, is_idle in idle.items() if is_idle]:
        raise ConfigError(
            f"{options[0]} says nothing here; leave it out (fedsim deploy --help shows what for)"
        )


def _rounds(extend: str) -> int:
    key, _, value = extend.partition("=")
    if key != "rounds" or not value.isascii() or not value.isdigit() or not 0 < int(value) < 2**32:
        raise ConfigError(f"--extend {extend}: expected a number of rounds, as in rounds=100")
    return int(value)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Print errors as one message and exit with their code; tracebacks only with `--debug`."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except FedsimError as error:
        # What a client failed with holds the client's traceback.
        message, cut, _ = str(error).partition("\nTraceback (most recent call last)")
        notes = getattr(error, "__notes__", []) if cut else []
        _fail("\n".join(["error: " + message, *notes]), error.exit_code, debug)
    except KeyboardInterrupt as error:
        _fail("\n".join(["interrupted", *getattr(error, "__notes__", [])]), 130, debug)
    except BrokenPipeError as error:
        reason = "error: standard output was closed"
        _fail("\n".join([reason, *getattr(error, "__notes__", [])]), 1, debug, closed=True)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        notes = getattr(error, "__notes__", ["Add --debug to see where it happened"])
        _fail(f"error: internal: {type(error).__name__}: {first} ({'; '.join(notes)})", 1, debug)


def _fail(message: str, code: int, debug: bool, *, closed: bool = False) -> NoReturn:
    if debug:
        traceback.print_exc()
    typer.echo(message, err=True)
    if closed:  # else Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


if __name__ == "__main__":
    app()
