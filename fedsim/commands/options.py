"""What the commands share: their common options, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from fedsim.errors import ConfigError, FedsimError

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


def scenario(words: Sequence[str] | None) -> tuple[str, list[str]]:
    """Split `scenario=NAME` from the overrides."""
    named = [word for word in words or [] if word.startswith("scenario=")]
    if len(named) != 1:
        got = " ".join(words or []) or "nothing"
        raise ConfigError(
            f"one scenario=NAME is needed, got: {got}; e.g. scenario=quickstart "
            "(fedsim list scenarios shows them all)"
        )
    return named[0].removeprefix("scenario="), [word for word in words or [] if word not in named]


def refuse_idle(idle: Mapping[str, object]) -> None:
    """Refuse options that would do nothing with the others that were given."""
    if options := [option for option, is_idle in idle.items() if is_idle]:
        raise ConfigError(
            f"{options[0]} says nothing here; leave it out (fedsim deploy --help shows what for)"
        )


def rounds(extend: str) -> int:
    key, _, value = extend.partition("=")
    if key != "rounds" or not value.isascii() or not value.isdigit() or not 0 < int(value) < 2**32:
        raise ConfigError(f"--extend {extend}: expected a number of rounds, as in rounds=100")
    return int(value)


@contextmanager
def errors(debug: bool) -> Iterator[None]:
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
