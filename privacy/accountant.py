"""From events to epsilon: the one place where a privacy claim is computed.

Which accountant speaks, in this order; an unsupported combination of mechanism, sampling and
relation is refused, never guessed:

    nothing released                        0
    noise of scale 0                        inf
    unsampled Gaussian noise only           closed form, exact      accounting/gaussian.py
    delta = 0, pure mechanisms only         sum of epsilons         accounting/pure.py
    integer noise among the events          Renyi DP                accounting/rdp.py
    everything else                         PLD, tight              accounting/pld.py, fixed_size.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import get_args

from scipy.optimize import brentq
from scipy.stats import binom

from fedsim.errors import ConfigError
from privacy.accounting import pld
from privacy.accounting.gaussian import gaussian_delta, gaussian_epsilon
from privacy.accounting.prv import prv_epsilon
from privacy.accounting.pure import pure_epsilon
from privacy.accounting.rdp import best_of_curve, rdp_curve, rdp_delta, rdp_epsilon
from privacy.accounting.secant import smallest_noise
from privacy.events import (
    DiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Laplace,
    Poisson,
    Relation,
    Skellam,
    Unsampled,
)

__all__ = [
    "EpsilonCurve",
    "Spent",
    "best_of",
    "calibrate",
    "delta",
    "delta_warning",
    "epsilon",
    "padding_cap",
    "prv",
    "rdp",
]

CURVE_RATIO = 1.28
"""`EpsilonCurve` looks at counts this far apart: 36 of them up to 10^4."""

NOTHING = "nothing was released"
NO_NOISE = "a release without noise"
CLOSED_FORM = "closed form of the Gaussian composition (exact)"
SUM = "sum of the pure epsilons (basic composition)"
RENYI = "Renyi DP (an upper bound, not tight)"
PLD = "privacy loss distribution (dp-accounting, pessimistic grid)"
PLD_FIXED = PLD + ", subsets of fixed size by Balle et al. 2018"


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

    Args:
        events: All releases about the same units, in any order.
        delta: In (0, 1), or 0 where every event is pure and epsilons are to be summed.
        relation: Of neighbouring data sets.

    Raises:
        ConfigError: No accountant here supports the composition; it says which would be.

    Example:
        >>> event = Event(mechanism=Gaussian(noise_multiplier=1.0), sampling=Poisson(rate=0.01),
        ...               count=1000)
        >>> round(epsilon([event], delta=1e-5, relation="add_remove").epsilon, 4)
        1.8282
    """
    _check(delta, relation)
    return _epsilon(canonical(events, relation), delta, relation)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float, relation: Relation) -> Spent:
    who = _accountant(events, delta, relation)
    if who == NOTHING:
        value = 0.0
    elif who == NO_NOISE:
        value = math.inf
    elif who == CLOSED_FORM:
        value = gaussian_epsilon(_mu(events, relation), delta)
    elif who == SUM:
        value = sum(event.count * _pure(event, relation) for event in events)
    elif who == RENYI:
        value = rdp_epsilon(rdp_curve(events, relation), delta)
    else:
        value = pld.pld_epsilon(events, delta, relation)
    return Spent(epsilon=value, accountant=who)


def delta(events: Sequence[Event], *, epsilon: float, relation: Relation) -> float:
    """Return the smallest delta that we can prove at `epsilon` for the composition of `events`.

    Raises:
        ConfigError: See `epsilon`.
    """
    _check(0.5, relation)
    if not 0 <= epsilon < math.inf:
        raise ConfigError(f"epsilon: {epsilon!r}; allowed: [0, inf)")
    plain = canonical(events, relation)
    who = _accountant(plain, 0.5, relation)
    if who == NOTHING:
        return 0.0
    if who == NO_NOISE:
        return 1.0
    if who == CLOSED_FORM:
        return float(gaussian_delta(_mu(plain, relation), epsilon))
    if who == RENYI:
        return rdp_delta(rdp_curve(plain, relation), epsilon)
    return pld.pld_delta(plain, epsilon, relation)


def rdp(events: Sequence[Event], *, delta: float, relation: Relation) -> float:
    """Return epsilon by Renyi DP: a cross-check, at or above `epsilon` by up to 80 %."""
    _check(delta, relation)
    plain = canonical(events, relation)
    if _accountant(plain, 0.5, relation) in (NOTHING, NO_NOISE):
        return _epsilon(plain, delta, relation).epsilon
    return rdp_epsilon(rdp_curve(plain, relation), delta)


def prv(events: Sequence[Event], *, delta: float, relation: Relation, error: float = 0.01) -> float:
    """Return epsilon by Opacus' PRV accountant: a cross-check; see `accounting/prv.py`."""
    _check(delta, relation)
    plain = canonical(events, relation)
    if _accountant(plain, 0.5, relation) in (NOTHING, NO_NOISE):
        return _epsilon(plain, delta, relation).epsilon
    return prv_epsilon(plain, delta, relation, error)


def calibrate(
    events_at: Callable[[float], Sequence[Event]],
    *,
    epsilon: float,
    delta: float,
    relation: Relation,
) -> float:
    """Return the smallest noise whose events cost at most `epsilon`, to 4e-5 (never below it).

    Bracketed and solved on a coarse grid first, which costs hundredths of a second a time; then a
    few secant steps on the grid that claims are made on.

    Args:
        events_at: The whole run's events at a noise multiplier; more noise costs less.
        epsilon: The target, > 0.
        delta: In (0, 1).
        relation: Of neighbouring data sets.

    Raises:
        ConfigError: No noise reaches the target, or see `epsilon`.
    """
    _check(delta, relation)
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"epsilon: {epsilon!r} cannot be aimed at; allowed: (0, inf)")

    def cost(noise: float) -> float:
        return _epsilon(canonical(events_at(noise), relation), delta, relation).epsilon

    def rough(log_noise: float) -> float:
        events = canonical(events_at(math.exp(log_noise)), relation)
        if _accountant(events, delta, relation).startswith(PLD):
            grid = pld.coarse_grid(events, relation)
            return pld.epsilon_on_grid(events, delta, relation, grid)
        return _epsilon(events, delta, relation).epsilon

    low = high = 0.0
    while rough(high) > epsilon:
        high += math.log(2)
        if high > math.log(1e7):
            raise ConfigError(
                f"epsilon: no noise reaches {epsilon!r} at delta={delta!r}; even 1e7 costs "
                f"{rough(high):.4g}. Take fewer rounds, or a larger epsilon"
            )
    while rough(low) <= epsilon:
        low -= math.log(2)
        if low < math.log(1e-4):
            raise ConfigError(
                f"epsilon: even noise 1e-4 costs less than {epsilon!r} at delta={delta!r}: nothing "
                "to solve for. Ask for a smaller epsilon, or set the noise yourself"
            )
    root = brentq(lambda x: rough(x) - epsilon, low, high, xtol=1e-7)
    slope = (rough(root + 0.01) - rough(root - 0.01)) / 0.02
    return smallest_noise(cost, epsilon, math.exp(root), min(slope, -1e-3 * epsilon))


class EpsilonCurve:
    """Epsilon over the number of rounds, for a progress line: cheap, monotone, never too low.

    Exact at a geometric grid of counts and at `exact_at`; between them the next one's value.

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
        _check(delta, relation)
        self._events, self._delta, self._relation = tuple(events), delta, relation
        self._exact_at = sorted(exact_at)

    def at(self, count: int) -> float:
        """Return an upper bound on the epsilon of `count` rounds."""
        known = self.known_count(count)
        many = [event.times(known) for event in self._events]
        return epsilon(many, delta=self._delta, relation=self._relation).epsilon

    def known_count(self, count: int) -> int:
        """Return the smallest count >= `count` at which the curve is computed."""
        if count < 0:
            raise ConfigError(f"count: {count!r} rounds; allowed: 0 or more")
        step = 0 if count == 0 else 1
        while step < count:
            step = max(step + 1, math.floor(step * CURVE_RATIO))
        return min([step, *(exact for exact in self._exact_at if exact >= count)])


def best_of(
    events: Sequence[Event], *, mean_runs: float, delta: float, relation: Relation
) -> Spent:
    """Return the epsilon of publishing only the best of a random number of runs (a sweep).

    The number of runs is geometric with the given mean, drawn before looking; see `best_of_curve`.
    A sweep of a fixed size, or one whose other runs are looked at, costs their composition instead.

    Args:
        events: Of one run.
        mean_runs: At least 1.
        delta: In (0, 1).
        relation: Of neighbouring data sets.

    Raises:
        ConfigError: Renyi DP does not support the events.
    """
    _check(delta, relation)
    if not 1 <= mean_runs < math.inf:
        raise ConfigError(f"mean_runs: {mean_runs!r}; allowed: [1, inf)")
    plain = canonical(events, relation)
    if _accountant(plain, delta, relation) in (NOTHING, NO_NOISE):
        return _epsilon(plain, delta, relation)
    value = rdp_epsilon(best_of_curve(plain, mean_runs, relation), delta)
    words = f"{RENYI}; best of a geometric number of runs, {mean_runs:g} on average"
    return Spent(epsilon=value, accountant=words)


def delta_warning(*, delta: float, population: int) -> str | None:
    """Return a sentence for the privacy statement where delta is too large to mean much."""
    if delta < 1 / population:
        return None
    return (
        f"delta = {delta:g} is not below 1/{population}: a mechanism that publishes one unit at "
        "random would meet it"
    )


def padding_cap(*, rate: float, population: int, failure: float = 1e-10) -> int:
    """Return the largest Poisson sample that padding has to hold, exceeded with `failure`.

    A sample that is cut to a smaller cap is no Poisson sample, and costs more (4.77 -> 8.66 for a
    cap of 64 at a mean of 50); one beyond this cap must stop the run.

    Args:
        rate: q.
        population: Units, each with an independent coin.
        failure: Probability per sample that the cap is exceeded.

    Example:
        >>> padding_cap(rate=0.05, population=1000)
        99
    """
    return int(binom.isf(failure, population, rate))


def canonical(events: Sequence[Event], relation: Relation) -> tuple[Event, ...]:
    """Return the same releases with equal ones counted together, in an order of their own.

    Raises:
        ConfigError: Something is not an event.
    """
    counts: dict[Event, int] = {}
    for event in events:
        if not isinstance(event, Event):
            raise ConfigError(f"{event!r} is no privacy event; what is unknown cannot be accounted")
        sampling = event.sampling
        if event.count == 0 or (isinstance(sampling, Poisson) and sampling.rate == 0):
            continue
        # The whole population is a sample of fixed size only where the population is fixed.
        whole = isinstance(sampling, FixedSize) and sampling.size == sampling.population
        if sampling == Poisson(rate=1.0) or (whole and relation == "replace_one"):
            sampling = Unsampled()
        one = replace(event, sampling=sampling, count=1)
        counts[one] = counts.get(one, 0) + event.count
    return tuple(replace(one, count=counts[one]) for one in sorted(counts, key=repr))


def _accountant(events: tuple[Event, ...], delta: float, relation: Relation) -> str:
    mechanisms = [event.mechanism for event in events]
    if not events:
        return NOTHING
    if any(_noiseless(event) for event in events):
        return NO_NOISE
    if delta == 0:
        if all(pure_epsilon(e.mechanism, e.sampling, relation) is not None for e in events):
            return SUM
        raise ConfigError(
            "delta: 0 is met by pure mechanisms only (Laplace, PureDP, in a sampling that "
            "amplifies them under this relation); allowed otherwise: (0, 1)"
        )
    unsampled = all(isinstance(event.sampling, Unsampled) for event in events)
    if unsampled and all(isinstance(mechanism, Gaussian) for mechanism in mechanisms):
        return CLOSED_FORM
    if any(isinstance(mechanism, Skellam | DiscreteGaussian) for mechanism in mechanisms):
        return RENYI
    fixed = any(isinstance(event.sampling, FixedSize) for event in events)
    return PLD_FIXED if fixed else PLD


def _noiseless(event: Event) -> bool:
    mechanism = event.mechanism
    if isinstance(mechanism, Gaussian):
        return mechanism.noise_multiplier == 0
    if isinstance(mechanism, Laplace):
        return mechanism.scale == 0
    if isinstance(mechanism, Skellam):
        return mechanism.variance == 0
    return isinstance(mechanism, DiscreteGaussian) and mechanism.sigma == 0


def _mu(events: tuple[Event, ...], relation: Relation) -> float:
    """Return sensitivity / standard deviation of the composition of unsampled Gaussians."""
    sensitivity = 1.0 if relation == "add_remove" else 2.0
    noise = [
        (e.mechanism.noise_multiplier, e.count) for e in events if isinstance(e.mechanism, Gaussian)
    ]
    return sensitivity * math.sqrt(math.fsum(count / z**2 for z, count in noise))


def _pure(event: Event, relation: Relation) -> float:
    value = pure_epsilon(event.mechanism, event.sampling, relation)
    return math.inf if value is None else value


def _check(delta: float, relation: Relation) -> None:
    if relation not in get_args(Relation):
        raise ConfigError(
            f"relation: {relation!r}; allowed: {' or '.join(get_args(Relation))}. There is no "
            "default: the same run costs 1.8 under one and 2.8 under the other"
        )
    if not 0 <= delta < 1:
        raise ConfigError(f"delta: {delta!r}; allowed: [0, 1)")
