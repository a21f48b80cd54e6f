"""Cyclic participation: every client is on for a fixed run of rounds, then off, and so on.

FedAU (Wang & Ji 2024, arXiv:2306.03401), as in the authors' released code, for a cycle of c rounds:

    on_n = max(1, round(c * p_n));  off_n = max(1, c - on_n)
    first turns on in round 1 + r_n,  r_n uniform in 0..off_n - 1;  then on_n on, off_n off, ...

Rounding makes a client's true rate on_n / (on_n + off_n), which `rates()` reports: at least 1/c,
and c/(c + 1) where p_n = 1. Rates hold over time, not over clients in one round: since all start
off, clients of equal rates are never on in the last round of a period, so the cohort's size itself
goes up and down with period c. Nothing differs from the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.participation.base import Population, Schedule
from fedsim.participation.rates import RatedPart
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Cyclic(RatedPart):
    """Periodic participation with (nearly) the rates of `RatedPart`.

    Attributes:
        cycle: Length of a period, in rounds.
    """

    cycle: Annotated[int, Range(ge=2)] = 100

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        return CyclicSchedule(self.client_rates(population), self.cycle, population.seed)


class CyclicSchedule(Schedule):
    """Fixed runs with one random offset per client.

    Args:
        rate_N: Wanted rates, in (0, 1].
        cycle: Rounds in a period.
        seed: The scenario's seed.
    """

    def __init__(self, rate_N: np.ndarray, cycle: int, seed: int) -> None:
        self.on_N = np.maximum(1, np.rint(cycle * rate_N)).astype(np.int64)
        self.off_N = np.maximum(1, cycle - self.on_N)
        rng = seeds.rng(seed, 0, seeds.SERVER, "participation")
        self.wait_N = rng.integers(self.off_N)

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        # Before a client's first run the argument is negative; mod puts that into an off run.
        phase_N = (server_round - 1 - self.wait_N) % (self.on_N + self.off_N)
        return np.flatnonzero(phase_N < self.on_N)

    def rates(self) -> np.ndarray:
        """Return the rates after rounding to whole rounds, float64 `[N]`."""
        rate_N: np.ndarray = self.on_N / (self.on_N + self.off_N)
        return rate_N
