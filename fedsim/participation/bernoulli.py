"""Bernoulli participation: every client tosses its own coin every round (Poisson sampling).

    client n takes part in round t with probability p_n, independently of all else

The cohort varies in size and may be empty. With equal rates, the cohort's size is drawn first
(binomial) and then a uniform set of that size: the same law at O(cohort) instead of O(clients).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim import seeds
from fedsim.participation.base import Population, Schedule
from fedsim.participation.rates import RatedPart
from fedsim.participation.sampling import Poisson, Sampling


@dataclass(frozen=True, kw_only=True)
class Bernoulli(RatedPart):
    """Independent participation with the rates of `RatedPart`."""

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        rate_N = self.client_rates(population)
        if self.rates == "homogeneous":
            return EqualBernoulliSchedule(rate_N, population.seed)
        return BernoulliSchedule(rate_N, population.seed)


class BernoulliSchedule(Schedule):
    """Independent coins with chances `rate_N [N]`, one vectorised draw per round."""

    def __init__(self, rate_N: np.ndarray, seed: int) -> None:
        self.rate_N = rate_N
        self.seed = seed

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        rng = seeds.rng(self.seed, server_round, seeds.SERVER, "participation")
        return np.flatnonzero(rng.random(len(self.rate_N)) < self.rate_N)

    def rates(self) -> np.ndarray:
        """See `Schedule.rates`."""
        return self.rate_N


class EqualBernoulliSchedule(BernoulliSchedule):
    """The same law for equal rates, without touching the clients that stay out."""

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        rng = seeds.rng(self.seed, server_round, seeds.SERVER, "participation")
        num_clients = len(self.rate_N)
        cohort = rng.binomial(num_clients, self.rate_N[0])
        return np.sort(rng.choice(num_clients, cohort, replace=False, shuffle=False))

    def sampling(self) -> Sampling:
        """See `Schedule.sampling`."""
        return Poisson(rate=float(self.rate_N[0]))
