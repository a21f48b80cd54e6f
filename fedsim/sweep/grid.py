"""From the words of a sweep to its points: Hydra's sweep grammar, and every point checked.

`seed=0,1,2`, `seed=range(0,3)`, `choice(...)`, `sort(...)` and, for scenarios and parts,
`strategy=glob(fed*)`. Several grids, each with words of its own, are joined by the word `and`:

    scenario=quickstart strategy=fedprox strategy.mu=0.1,1 and strategy=fedavg
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    RangeSweep,
    Transformer,
)

from fedsim import catalog
from fedsim.catalog import GROUPS
from fedsim.config import Config, compose, sources
from fedsim.config.composition import Loaded
from fedsim.config.overrides import read
from fedsim.errors import ConfigError

AND = "and"
"""The word between two grids."""

SCENARIO, SEED = "scenario", "seed"
MOST_POINTS = 10_000
"""More is a slip of the keyboard: at a second each it would be hours."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep, before it is checked.

    Attributes:
        scenario, overrides: As for `fedsim run`.
        axes: What the grid varies, key -> value as typed, in the order of the words.
    """

    scenario: str
    overrides: tuple[str, ...]
    axes: dict[str, str]

    @property
    def label(self) -> str:
        """What tells this point from the others of its grid."""
        return " ".join(f"{key}={value}" for key, value in self.axes.items())

    @property
    def command(self) -> str:
        """The command that runs this point alone."""
        return shlex.join(["fedsim", "run", f"{SCENARIO}={self.scenario}", *self.overrides])


@dataclass(frozen=True)
class _Axis:
    """One word of a grid: a key and its values, each with the word that sets it."""

    key: str
    words: dict[str, str]


def expand(words: Sequence[str], root: Path | None = None) -> list[Point]:
    """Return the points of all grids, in the order of the words, the last axis running fastest.

    Args:
        words: As typed: `scenario=...`, overrides, and `and` between grids. A grid without a
            scenario has that of the grid before.
        root: The scenarios folder; the packaged one by default.

    Raises:
        ConfigError: A word is not in the grammar, a list is empty, nothing varies, or there are too
            many points.
    """
    found: list[tuple[tuple[str, ...], dict[str, str]]] = []
    scenario: str | None = None
    for grid in _grids(words):
        named = [word for word in grid if word.startswith(f"{SCENARIO}=")]
        if len(named) > 1 or not (named or scenario):
            got = " ".join(grid) or "nothing"
            raise ConfigError(
                f"one scenario=NAME is needed in a grid, got: {got}; e.g. scenario=quickstart, or "
                "several, scenario=quickstart,regression (fedsim list scenarios shows them all)"
            )
        scenario = named[0] if named else str(scenario)
        rest = [word for word in grid if word not in named]
        found += _product(scenario, rest, MOST_POINTS - len(found), root)
    keys = dict.fromkeys(key for _, values in found for key in values)
    varying = [key for key in keys if len({values.get(key) for _, values in found}) > 1]
    points = [
        Point(
            scenario=overrides[0],
            overrides=overrides[1:],
            axes={key: values[key] for key in varying if key in values},
        )
        for overrides, values in found
    ]
    if not varying:
        raise ConfigError(
            f"nothing varies here; for one run: {points[0].command}, for a sweep give a key "
            "several values, e.g. seed=0,1,2 or 'seed=range(0,3)'"
        )
    return points


def check(points: Sequence[Point]) -> list[Config]:
    """Compose and check the scenario of every point, before any of them runs.

    Raises:
        ConfigError: One is wrong; the message names it.
    """
    loaded: Loaded = {}
    configs = []
    for number, point in enumerate(points, start=1):
        try:
            configs.append(compose(point.scenario, point.overrides, loaded=loaded))
        except ConfigError as error:
            raise ConfigError(
                f"point {number} of {len(points)} ({point.label or point.scenario}): {error}"
            ) from error
    return configs


def _grids(words: Sequence[str]) -> list[list[str]]:
    grids: list[list[str]] = [[]]
    for word in words:
        if word == AND:
            grids.append([])
        else:
            grids[-1].append(word)
    if len(grids) > 1 and not all(grids):
        raise ConfigError(
            f"a grid is empty; '{AND}' stands between two: ... seed=0,1 {AND} strategy=fedau seed=2"
        )
    return grids


def _product(
    scenario: str, words: Sequence[str], most: int, root: Path | None
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Yield each point of a grid: its scenario and overrides, and every key's value."""
    parser = OverridesParser.create()
    axes = [_scenarios(parser, scenario, root)]
    first = next(iter(axes[0].words))
    for word in words:
        axis = _axis(read(parser, word), word, first, root)
        if any(axis.key == other.key for other in axes):
            raise ConfigError(f"{axis.key} is given twice; one list holds all of its values")
        axes.append(axis)
    count = math.prod(len(axis.words) for axis in axes)
    if count > most:
        raise ConfigError(
            f"{count:,} points are more than fit ({most:,}); shorten a list, or make several sweeps"
        )
    for chosen in itertools.product(*(axis.words.items() for axis in axes)):
        values = {axis.key: value for axis, (value, _) in zip(axes, chosen, strict=True)}
        yield tuple(word for _, word in chosen), values


def _scenarios(parser: OverridesParser, word: str, root: Path | None) -> _Axis:
    name = word.removeprefix(f"{SCENARIO}=")
    if any(mark in name for mark in ",("):  # else a path, which need not be in the grammar
        parsed = read(parser, word)
        if parsed.is_sweep_override():
            known = [entry.name for entry in catalog.scenarios(root)]
            names = [str(getattr(v, "text", v)) for v in values_of(parsed, word, known)]
            return _Axis(SCENARIO, {name: name for name in names})
    return _Axis(SCENARIO, {name: name})


def _axis(parsed: Override, word: str, scenario: str, root: Path | None) -> _Axis:
    key = parsed.key_or_group
    if not parsed.is_sweep_override():
        _, equals, value = word.partition("=")
        return _Axis(key, {value if equals else "(default)": word})
    names = sources.find(scenario, root).options(key) if key in GROUPS else []
    values = [Transformer.str(value) for value in values_of(parsed, word, names)]
    return _Axis(key, {value: f"{parsed.get_key_element()}={value}" for value in values})


def values_of(parsed: Override, word: str, names: Sequence[str]) -> list[Any]:
    """Return the values of a word, each once.

    Raises:
        ConfigError: There is none, or they cannot be listed.
    """
    key, sweep = parsed.key_or_group, parsed.value()
    if getattr(sweep, "shuffle", False):
        raise ConfigError(f"{word!r}: the order of points decides nothing; leave shuffle() out")
    if isinstance(sweep, Glob):
        if not names:
            raise ConfigError(
                f"{word!r}: glob matches the names of scenarios and of parts "
                f"({', '.join(GROUPS)}); give {key} a list instead, {key}=1,2"
            )
        found: list[Any] = list(sweep.filter(list(names)))
        if not found:
            raise ConfigError(f"{word!r} matches none of: {', '.join(names)}")
        return found
    if isinstance(sweep, RangeSweep):
        found = _range(sweep, word)
    elif isinstance(sweep, ChoiceSweep):
        found = list(sweep.list)
    else:
        raise ConfigError(
            f"{word!r} has no values to list; give some, as {key}=0.1,0.2 or '{key}=range(0,5)'"
        )
    return list({Transformer.str(value): value for value in found}.values())


def _range(sweep: RangeSweep, word: str) -> list[Any]:
    """Return the values of a range: of decimals, the decimals, which `0.1 + 0.2` is not."""
    start, stop, step = (Decimal(str(x)) for x in (sweep.start, sweep.stop, sweep.step))
    try:
        count = math.ceil((stop - start) / step)
    except (ArithmeticError, ValueError) as error:
        raise ConfigError(f"{word!r}: a step of {step} never gets to {stop}") from error
    if count < 1:
        raise ConfigError(
            f"{word!r} is an empty list: from {start} in steps of {step}, {stop} is not ahead"
        )
    if count > MOST_POINTS:
        raise ConfigError(f"{word!r}: {count:,} values are more than fit ({MOST_POINTS:,})")
    values = [start + index * step for index in range(count)]
    whole = all(isinstance(x, int) for x in (sweep.start, sweep.stop, sweep.step))
    return [int(value) if whole else float(value) for value in values]
