"""`fedsim list`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.commands import options
from fedsim.completion import complete_groups
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.config.keys import Key


def list_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A group (scenarios, strategy, data, ...); or scenario=NAME with --keys.",
            metavar="[GROUP]",
            autocompletion=complete_groups,
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="With scenario=NAME: every key, its type and range.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List scenarios and their parts: what each is, its paper, who is trusted."""
    with options.errors(debug):
        from fedsim import catalog

        if keys or any("=" in word for word in words or []):
            from fedsim.config import compose
            from fedsim.config.keys import keys as keys_of

            scenario, rest = options.scenario(words)
            rows = keys_of(compose(scenario, rest))
            if as_json:
                typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], default=str))
                return
            typer.echo("".join(f"{line}\n" for line in _key_lines(rows)), nl=False)
            return
        groups = _groups(words, (*catalog.groups(), *catalog.APART))
        found = {
            group: catalog.scenarios() if group == "scenarios" else catalog.entries(group)
            for group in groups
        }
        if as_json:
            shown = ("summary", "paper", "trust")
            listed = {
                group: {e.name: {name: getattr(e, name) for name in shown} for e in entries}
                for group, entries in found.items()
            }
            typer.echo(json.dumps(listed))
            return
        for group, entries in found.items():
            typer.echo(f"{group}:")
            width = max((len(entry.name) for entry in entries), default=0)
            for entry in entries:
                typer.echo(f"  {entry.name:<{width}}  {entry.summary}")
                if entry.trust:
                    typer.echo(f"  {'':<{width}}  trusted: {entry.trust}")


def _key_lines(rows: Sequence[Key]) -> Iterator[str]:
    width = max(len(row.path) for row in rows)
    for row in rows:
        default = {"???": "required"}.get(str(row.default), f"default {_yaml(row.default)}")
        same = row.default == row.value and type(row.default) is type(row.value)
        yield (
            f"{row.path:<{width}}  {_yaml(row.value):<14}  {row.type}"
            f"{'' if same else f'; {default}'}"
        )


def _yaml(value: object) -> str:
    """Return a value as it is typed: `null`, `true`, `[8, 8]`."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _groups(words: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    everything = ["scenarios", *known]
    plural = {"strategies": "strategy", "models": "model", "engines": "engine"}
    plural |= {"partitions": "partition", "clients": "client", "topologies": "topology"}
    plural |= {"attacks": "attack", "audits": "audit", "paces": "pace"}
    chosen = [plural.get(word, word) for word in words or everything]
    for word in chosen:
        if word not in everything:
            raise ConfigError(f"there is no group {word!r}{_meant(word, everything)}")
    return chosen


def _meant(word: str, groups: Sequence[str]) -> str:
    from fedsim import catalog
    from fedsim.errors import did_you_mean

    for group in ("strategy", *groups):
        if word in {entry.name for entry in catalog.entries(group)}:
            return f"; it is a {group}: fedsim list scenario=quickstart {group}={word} --keys"
    if word in {entry.name for entry in catalog.scenarios()}:
        return f"; it is a scenario: fedsim list scenario={word} --keys"
    return did_you_mean(word, groups) or f"; groups: {', '.join(groups)}"
