"""What a run of DIFF2 releases, and how much noise each release gets (arXiv:2302.03884).

    A restarts        noise z1 c · N(0, I) on a sum of vectors of norm <= c      z1 = N σ1
    B differences     noise z2 c · N(0, I)                                       z2 = N σ2
    E local visits    noise z3 c · N(0, I) on the sum over one batch             z3 = b σ3

E counts the local steps that one record can be looked at in: the most of any record (BVR-L-SGD;
0 for DIFF2-GD). A record is in the sum of all A + B rounds, and of at most E local steps.

tight        z1 = s √(A / (φ (1 − φ'))), z2 = s √(B / ((1 − φ)(1 − φ'))), z3 = s √(E / φ'): since
             Gaussian releases compose to Σ 1/z² = 1/s², the run costs what one release with noise
             s costs. φ: share of restarts in what local steps leave; φ': share of local steps
published    z1² = 4u a R/(T ε), z2² = 4u/(u−1) a R/ε, a = 1 + ⌈2 ln(1/δ)/ε⌉, u = 1.25 (u → 1 for
             z1 where T = 1); its own proof counts R/T restarts, not ⌈R/T⌉. None for local steps

Differs from the paper: `tight`. It needs 0.8 of the published noise or less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.events import Event, Gaussian

U = 1.25
"""u of the published calibration: 1/u of the budget is for restarts."""


@dataclass(frozen=True, kw_only=True)
class Releases:
    """How often a run releases what: A, B and E of this file's header."""

    restarts: int
    differences: int
    visits: int = 0


def of_rounds(rounds: int, restart: int, visits: int = 0) -> Releases:
    """Return A = ⌈R/T⌉, B = R − A and E.

    Example:
        >>> of_rounds(500, 60)
        Releases(restarts=9, differences=491, visits=0)
    """
    restarts = math.ceil(rounds / restart)
    return Releases(restarts=restarts, differences=rounds - restarts, visits=visits)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a run releases, and the noise of each.

    Attributes:
        restarts, differences, visits: A, B, E.
        restart_noise, difference_noise, local_noise: z1, z2, z3; 0 where there is none of it.
    """

    restarts: int
    differences: int
    restart_noise: float
    difference_noise: float
    visits: int = 0
    local_noise: float = 0.0

    def events(self) -> list[Event]:
        """Return what the whole run releases about the record that it releases most about."""
        return [
            Event(mechanism=Gaussian(noise_multiplier=z), count=count)
            for z, count in self.pairs()
            if count
        ]

    def pairs(self) -> Sequence[tuple[float, int]]:
        """Return each kind's noise, and how often it is added."""
        return (
            (self.restart_noise, self.restarts),
            (self.difference_noise, self.differences),
            (self.local_noise, self.visits),
        )


def tight(planned: Releases, *, noise: float, split: float, local_split: float = 0.0) -> Schedule:
    """Return the schedule that costs what one release with noise multiplier `noise` costs.

    Args:
        planned: What is released.
        noise: s.
        split: φ; 1 where there are no differences.
        local_split: φ'; 0 where there are no local steps.
    """
    split = split if planned.differences else 1.0
    local = local_split if planned.visits else 0.0

    def level(count: int, share: float) -> float:
        return noise * math.sqrt(count / share) if count else 0.0

    return Schedule(
        restarts=planned.restarts,
        differences=planned.differences,
        visits=planned.visits,
        restart_noise=level(planned.restarts, split * (1 - local)),
        difference_noise=level(planned.differences, (1 - split) * (1 - local)),
        local_noise=level(planned.visits, local),
    )


def published(rounds: int, restart: int, *, epsilon: float, delta: float) -> Schedule:
    """Return the paper's noise, for the restarts that there are in truth."""
    order, planned = _order(epsilon, delta), of_rounds(rounds, restart)
    u = U if restart > 1 else 1.0
    return Schedule(
        restarts=planned.restarts,
        differences=planned.differences,
        restart_noise=math.sqrt(4 * u * order * rounds / (restart * epsilon)),
        difference_noise=math.sqrt(4 * U / (U - 1) * order * rounds / epsilon)
        if planned.differences
        else 0.0,
    )


def published_epsilon(rounds: int, restart: int, *, epsilon: float, delta: float) -> float:
    """Return what the paper's own analysis makes of `published`, with ⌈R/T⌉ restarts counted.

    Renyi DP of the one order a, converted by ln(1/δ)/(a − 1): at most `epsilon` where T divides R.

    Example:
        >>> round(published_epsilon(500, 60, epsilon=3.0, delta=1e-5), 2)
        3.03
    """
    plan, order = published(rounds, restart, epsilon=epsilon, delta=delta), _order(epsilon, delta)
    cost = sum(count * 2 * order / noise**2 for noise, count in plan.pairs() if count)
    return cost + math.log(1 / delta) / (order - 1)


def _order(epsilon: float, delta: float) -> int:
    return 1 + math.ceil(2 * math.log(1 / delta) / epsilon)
