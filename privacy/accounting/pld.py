"""Privacy loss distributions: the tight accountant for everything that is sampled or mixed.

Koskela, Jälkö, Honkela (arXiv:1906.03049): the loss log P(o)/Q(o) of a composition is the sum of
the losses, so its distribution is a convolution. dp-accounting discretises each release on a grid
by connect-the-dots (arXiv:2207.04380), pessimistically: the epsilon that comes out is never below
the truth, whatever the grid; a finer one is only tighter.

    delta(epsilon) = E max(0, 1 - e^(epsilon - loss)) + P(loss = inf)
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.privacy_accountant import NeighboringRelation

from fedsim.errors import ConfigError
from privacy.accounting.fixed_size import fixed_size_pmf
from privacy.accounting.pure import pure_epsilon
from privacy.events import (
    Event,
    FixedSize,
    Gaussian,
    Laplace,
    Mechanism,
    Poisson,
    PureDP,
    Relation,
    Sampling,
)

GRID = 1e-4
"""The loss is rounded to multiples of this. 1e-5 instead moves the tables' epsilons by < 1.2e-4."""

COARSE = 1e-3
"""A grid for looking around."""

MAX_POINTS = 2**21
"""Where epsilon itself is in the hundreds, the grid is coarsened to about this many points."""

ROUNDING = 1e-13
"""Of delta, set aside for the rounding errors of the Fourier transform. On 10^6 points they add up
to 3e-14, either way: at delta = 1e-9, epsilon = 118 came out 6e-5 below the truth without this."""

MIN_DELTA = 1e-11
"""The smallest delta at which that is hardly felt."""

RELATIONS = {
    "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": NeighboringRelation.REPLACE_ONE,
}
"""Our names of the neighbouring relations -> dp-accounting's."""


def pld_epsilon(events: tuple[Event, ...], delta: float, relation: Relation) -> float:
    """Return epsilon by the composition's privacy loss distribution, on a grid that suits it."""
    if delta < MIN_DELTA:
        raise ConfigError(
            f"delta: {delta!r} is too small for privacy loss distributions in float64; allowed: "
            f"[{MIN_DELTA:g}, 1). Type delta={MIN_DELTA:g}, or leave sampling out"
        )
    return epsilon_on_grid(events, delta, relation, grid_for(events, delta, relation))


def pld_delta(events: tuple[Event, ...], epsilon: float, relation: Relation) -> float:
    """Return delta by the composition's privacy loss distribution (at least `MIN_DELTA`)."""
    grid = grid_for(events, MIN_DELTA, relation)
    found = float(composed(events, relation, grid).get_delta_for_epsilon(epsilon))
    return min(1.0, max(MIN_DELTA, found + ROUNDING))


@lru_cache(maxsize=1024)
def epsilon_on_grid(
    events: tuple[Event, ...], delta: float, relation: Relation, grid: float
) -> float:
    """Return epsilon with the loss rounded (upwards in effect) to multiples of `grid`."""
    return float(composed(events, relation, grid).get_epsilon_for_delta(delta - ROUNDING))


def coarse_grid(events: tuple[Event, ...], relation: Relation) -> float:
    """Return a grid on which any of the events alone has at most some 10^4 points."""
    widest = max(_widest_loss(event.mechanism, relation) for event in events)
    return COARSE * 2.0 ** max(0, math.ceil(math.log2(widest / (2**15 * COARSE))))


def grid_for(events: tuple[Event, ...], delta: float, relation: Relation) -> float:
    """Return `GRID`, or a multiple of it where the losses reach into the hundreds."""
    rough = epsilon_on_grid(events, delta, relation, coarse_grid(events, relation))
    widest = max(_widest_loss(event.mechanism, relation) for event in events)
    points = max(rough if math.isfinite(rough) else 0.0, widest) / GRID
    return GRID * 2.0 ** max(0, math.ceil(math.log2(points / MAX_POINTS)))


@lru_cache(maxsize=2)
def composed(events: tuple[Event, ...], relation: Relation, grid: float) -> Any:
    """Return the distribution of the summed losses of all events."""
    total = None
    for event in events:
        one = single(event.mechanism, event.sampling, relation, grid)
        many = one.self_compose(event.count) if event.count > 1 else one
        total = many if total is None else total.compose(many)
    return total


@lru_cache(maxsize=8)
def single(mechanism: Mechanism, sampling: Sampling, relation: Relation, grid: float) -> Any:
    """Return the loss distribution of one release.

    Raises:
        ConfigError: No proved distribution for this combination.
    """
    if isinstance(mechanism, Gaussian | Laplace) and isinstance(sampling, FixedSize):
        if relation == "replace_one":
            return pld.PrivacyLossDistribution(fixed_size_pmf(mechanism, sampling, grid))
        raise refused(
            mechanism,
            sampling,
            relation,
            "with one unit more or less every other unit's chance to be drawn changes too; use "
            "relation replace_one (at its price), or Poisson sampling",
        )
    if isinstance(mechanism, PureDP):
        epsilon = pure_epsilon(mechanism, sampling, relation)
        if epsilon is None:
            other = "replace_one" if isinstance(sampling, FixedSize) else "add_remove"
            raise refused(mechanism, sampling, relation, f"amplification is proved for {other}")
        return pld.PrivacyLossDistribution(pure_pmf(epsilon, grid))
    rate = sampling.rate if isinstance(sampling, Poisson) else 1.0
    if isinstance(mechanism, Gaussian):
        return pld.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            sampling_prob=rate,
            value_discretization_interval=grid,
            neighboring_relation=RELATIONS[relation],
        )
    if isinstance(mechanism, Laplace):
        if relation == "replace_one" and isinstance(sampling, Poisson):
            raise refused(
                mechanism,
                sampling,
                relation,
                "no tight pair is known; use relation add_remove, or a subset of fixed size",
            )
        return pld.from_laplace_mechanism(
            mechanism.scale,
            sensitivity=1.0 if relation == "add_remove" else 2.0,
            sampling_prob=rate,
            value_discretization_interval=grid,
        )
    raise refused(mechanism, sampling, relation, "its loss distribution is not known")


def pure_pmf(epsilon: float, grid: float) -> Any:
    """Return the loss of the worst `epsilon`-DP mechanism, which is randomised response.

    Its profile, delta(x) = (e^epsilon - e^x) / (1 + e^epsilon) for |x| <= epsilon, is a straight
    line in e^x, so that four dots describe it and no rounding adds up over a composition.
    """
    last = math.ceil(epsilon / grid)
    dots = sorted({-last, 1 - last, last - 1, last})

    def profile(x: float) -> float:
        if x >= epsilon:
            return 0.0
        if x <= -epsilon:
            return -math.expm1(x)
        return -math.expm1(x - epsilon) / (1 + math.exp(-epsilon))

    deltas = [profile(dot * grid) for dot in dots]
    return pld_pmf.create_pmf_pessimistic_connect_dots(grid, dots, deltas)


def _widest_loss(mechanism: Mechanism, relation: Relation) -> float:
    """Return roughly the largest loss of one release without sampling."""
    sensitivity = 1.0 if relation == "add_remove" else 2.0
    if isinstance(mechanism, Gaussian):
        mu = sensitivity / mechanism.noise_multiplier
        return mu * mu / 2 + 10 * mu
    epsilon = pure_epsilon(mechanism, Poisson(rate=1.0), "add_remove")
    return max(1.0, (epsilon or 1.0) * sensitivity)


def refused(mechanism: Mechanism, sampling: Sampling, relation: Relation, why: str) -> ConfigError:
    """Return the error of a combination that nothing here can account for."""
    return ConfigError(
        f"{type(mechanism).__name__} with {type(sampling).__name__} sampling under {relation} has "
        f"no accountant here: {why}"
    )
