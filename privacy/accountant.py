"""From events to epsilon: the one place where a privacy claim is computed.

An unsupported combination of mechanism, sampling and relation is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privacy.events import Event, Relation


@dataclass(frozen=True, kw_only=True)
class Spent:
    """An upper bound on the privacy loss, and who says so.

    Args:
        epsilon: At the delta that was asked for; inf for a release without noise.
        accountant: How it was computed, in words for the privacy statement.
    """

    epsilon: float
    accountant: str


def epsilon(events: Sequence[Event], *, delta: float, relation: Relation) -> Spent:
    """Return the tightest epsilon that we can prove for the composition of `events`.

    Raises:
        ConfigError: No accountant here supports the composition; it says which would be.
    """
    raise NotImplementedError


def delta(events: Sequence[Event], *, epsilon: float, relation: Relation) -> float:
    """Return the smallest delta that we can prove at `epsilon` for the composition of `events`.

    Raises:
        ConfigError: See `epsilon`.
    """
    raise NotImplementedError


def calibrate(
    events_at: Callable[[float], Sequence[Event]],
    *,
    epsilon: float,
    delta: float,
    relation: Relation,
) -> float:
    """Return the smallest noise whose events cost at most `epsilon`, to 1e-4 (never above).

    Args:
        events_at: The whole run's events at a noise multiplier.
        epsilon: The target, > 0.
        delta: In (0, 1).
        relation: Of neighbouring data sets.

    Raises:
        ConfigError: No noise reaches the target, or see `epsilon`.
    """
    raise NotImplementedError


class EpsilonCurve:
    """Epsilon over the number of rounds, for a progress line: cheap, monotone, never too low.

    Args:
        events: What one round releases.
        delta: In (0, 1).
        relation: Of neighbouring data sets.
        exact_at: Counts at which the bound is to be exact (the planned number of rounds).
    """

    def __init__(
        self,
        events: Sequence[Event],
        *,
        delta: float,
        relation: Relation,
        exact_at: Sequence[int] = (),
    ) -> None:
        self.events, self.delta, self.relation = tuple(events), delta, relation
        self.exact_at = tuple(exact_at)

    def at(self, count: int) -> float:
        """Return an upper bound on the epsilon of `count` rounds."""
        raise NotImplementedError


def best_of(
    events: Sequence[Event], *, mean_runs: float, delta: float, relation: Relation
) -> Spent:
    """Return the epsilon of publishing the best of a geometric number of runs (a sweep)."""
    raise NotImplementedError


def delta_warning(*, delta: float, population: int) -> str | None:
    """Return a sentence for the privacy statement where delta is too large to mean much."""
    raise NotImplementedError


def padding_cap(*, rate: float, population: int, failure: float = 1e-10) -> int:
    """Return the largest Poisson sample that padding has to hold, exceeded with `failure`."""
    raise NotImplementedError
