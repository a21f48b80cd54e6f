"""From the words of a search to the space that it draws points from, in Hydra's sweep grammar.

    client.lr=tag(log,interval(0.01,1))  privacy.sigma=interval(0.5,4)  client.epochs=1,2,5
    client.batch_size=int(interval(8,64))  rounds=range(5,30,5)  strategy=glob(fed*)

Each word with several values is a dimension; all others hold for every point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from fedsim.config import sources
from fedsim.config.overrides import read
from fedsim.errors import ConfigError
from fedsim.sweep.grid import AND, SCENARIO, SEED, Point, values_of

DIGITS = 6
"""Significant digits of a number that is drawn, so that a point's command can be read and typed."""

Drawn = int | float | str


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key that a search varies.

    Attributes:
        key, head: The key, and how its word begins (`key`, or `+key`).
        low, high, log, whole: Of an interval.
        options: Of a list: its values as typed; the interval is unused then.
        ordered: Whether the list is a range, whose neighbours are alike.
    """

    key: str
    head: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    options: tuple[str, ...] = ()
    ordered: bool = False

    def text(self, drawn: Drawn) -> str:
        """Return the value to type for what a sampler drew: of a range, the place in the list."""
        if self.options:
            return self.options[int(drawn)] if self.ordered else str(drawn)
        if self.whole:
            return str(int(drawn))
        rounded = float(f"{float(drawn):.{DIGITS}g}")
        return repr(min(max(rounded, self.low), self.high))

    @property
    def corners(self) -> tuple[str, ...]:
        """The values to check before anything runs."""
        if self.options:
            return self.options
        return self.text(self.low), self.text(self.high)


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a search draws points from."""

    scenario: str
    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def point(self, drawn: Mapping[str, Drawn]) -> Point:
        """Return the point of what was drawn for each dimension."""
        return self.at({d.key: d.text(drawn[d.key]) for d in self.dimensions})

    def at(self, axes: Mapping[str, str]) -> Point:
        """Return the point of these values, by key."""
        words = tuple(f"{d.head}={axes[d.key]}" for d in self.dimensions)
        return Point(scenario=self.scenario, overrides=(*self.fixed, *words), axes=dict(axes))

    def corners(self) -> list[Point]:
        """Return points that use the ends of each interval, and each option, at least once."""
        count = max(len(d.corners) for d in self.dimensions)
        return [
            self.at({d.key: d.corners[min(n, len(d.corners) - 1)] for d in self.dimensions})
            for n in range(count)
        ]


def parse(words: Sequence[str], root: Path | None = None) -> Space:
    """Read the words of a search.

    Raises:
        ConfigError: A word is not in the grammar, nothing varies, or what varies cannot.
    """
    if AND in words:
        raise ConfigError(f"--search draws from one space, so {AND!r} has no place; leave it out")
    named = [word for word in words if word.startswith(f"{SCENARIO}=")]
    scenario = named[0].removeprefix(f"{SCENARIO}=") if named else ""
    if len(named) != 1 or any(mark in scenario for mark in ",("):
        raise ConfigError(
            f"--search needs one scenario=NAME, got: {' '.join(named) or 'none'}; e.g. "
            "fedsim sweep scenario=quickstart --search 20 'client.lr=tag(log,interval(0.01,1))'"
        )
    parser = OverridesParser.create()
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    for word in words:
        if word in named:
            continue
        parsed = read(parser, word)
        key = parsed.key_or_group
        if not parsed.is_sweep_override():
            fixed.append(word)
            continue
        if key == SEED:
            raise ConfigError(
                f"{word!r}: a search compares points of one seed, or it would choose the luckiest; "
                "give one, seed=0, and sweep the best points over more afterwards"
            )
        if any(key == other.key for other in dimensions):
            raise ConfigError(f"{key} is given twice; one word holds all that it may be")
        dimensions.append(_dimension(parsed, word, scenario, root))
    if not dimensions:
        raise ConfigError(
            "nothing varies here; give a key an interval or a list, e.g. "
            "'client.lr=tag(log,interval(0.01,1))' or client.epochs=1,2,5"
        )
    return Space(scenario=scenario, fixed=tuple(fixed), dimensions=tuple(dimensions))


def _dimension(parsed: Override, word: str, scenario: str, root: Path | None) -> Dimension:
    key, head, sweep = parsed.key_or_group, parsed.get_key_element(), parsed.value()
    tags = {str(tag) for tag in getattr(sweep, "tags", None) or ()}
    if tags - {"log"} or (tags and not isinstance(sweep, IntervalSweep)):
        raise ConfigError(
            f"{word!r}: the one tag is log, of an interval: '{key}=tag(log,interval(0.01,1))'"
        )
    if not isinstance(sweep, IntervalSweep):
        names = sources.find(scenario, root).options(key)
        texts = tuple(Transformer.str(value) for value in values_of(parsed, word, names))
        return Dimension(key=key, head=head, options=texts, ordered=isinstance(sweep, RangeSweep))
    low, high = float(sweep.start or 0.0), float(sweep.end or 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{word!r}: an interval goes from a number up to a larger one")
    if tags and low <= 0:
        raise ConfigError(
            f"{word!r}: a logarithm needs numbers above 0, and this begins at {low:g}"
        )
    whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    return Dimension(key=key, head=head, low=low, high=high, log=bool(tags), whole=whole)
