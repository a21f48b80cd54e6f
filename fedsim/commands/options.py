"""What the commands share: their common options, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import click
import typer

from fedsim import catalog
from fedsim.completion import complete_overrides
from fedsim.errors import ConfigError, FedsimError, did_you_mean

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="scenario=<name or path>, then key=value overrides in Hydra's grammar, "
        "e.g. strategy=fedau client.lr=0.05",
        metavar="scenario=NAME [KEY=VALUE]...",
        autocompletion=complete_overrides,
    ),
]
LOOSE = {"ignore_unknown_options": True}
"""For commands that take overrides: `--rounds 3` is then answered by `scenario`, in our words."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def scenario(words: Sequence[str] | None) -> tuple[str, list[str]]:
    """Split `scenario=NAME` from the overrides.

    Raises:
        ConfigError: It is not there once, or a word is none that a command takes.
    """
    check_words(words or [])
    named = [word for word in words or [] if word.startswith("scenario=")]
    if len(named) != 1:
        raise ConfigError(
            f"one scenario=NAME is needed, got: {' '.join(words or []) or 'nothing'}; "
            f"e.g. scenario={_meant(words or [])} (fedsim list scenarios shows them all)"
        )
    return named[0].removeprefix("scenario="), [word for word in words or [] if word not in named]


def _meant(words: Sequence[str]) -> str:
    names = {entry.name for entry in catalog.scenarios()}
    return next((word for word in words if word in names), "quickstart")


def check_words(words: Sequence[str]) -> None:
    """Refuse what is written like no override, before its grammar is asked.

    Raises:
        ConfigError: Says how it is written.
    """
    if "=" in words:
        at = list(words).index("=")
        ends = [*words[max(0, at - 1) : at], "=", *words[at + 1 : at + 2]]
        raise ConfigError(f"{' '.join(ends)!r}: write {''.join(ends)!r}, without spaces")
    for word in words:
        if not word.startswith("-") or len(word) == 1:
            continue
        context = click.get_current_context(silent=True)
        known = [name for p in context.command.params for name in p.opts] if context else []
        bare = word.lstrip("-")
        hint = did_you_mean(word, [name for name in known if name.startswith("--")]) or (
            "; keys of a scenario are set without dashes, as in "
            f"{bare if '=' in bare else f'{bare}=VALUE'}"
        )
        raise ConfigError(f"there is no option {word!r}{hint}")


def refuse_idle(idle: Mapping[str, object]) -> None:
    """Refuse options that would do nothing with the others that were given."""
    if options := [option for option, is_idle in idle.items() if is_idle]:
        raise ConfigError(
            f"{options[0]} says nothing here; leave it out (fedsim deploy --help shows what for)"
        )


def rounds(extend: str) -> int:
    """Read `rounds=N`, as `--extend` takes it.

    Raises:
        ConfigError: It is not that.
    """
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
