"""Markov participation: clients come and go, so that taking part is correlated over rounds.

FedAU (Wang & Ji 2024, arXiv:2306.03401), as in the authors' released code.

    off -> on  with probability a = max_on          (largest such probability)
    on -> off  with probability b = a * (1/p - 1)
    where b > 1:  a <- a / b,  b <- 1               (so that the rate is p again)
    start on with probability p; step, then read

The start is the stationary law, so every round's rate is p, exactly; the lag-1 correlation is
1 - a - b; runs on and off are geometric with means 1/b and 1/a. Nothing differs from the code.
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
class Markov(RatedPart):
    """Two-state Markov participation with the rates of `RatedPart`.

    Attributes:
        max_on: Chance per round that a client that is off comes on, where its rate allows it.
    """

    max_on: Annotated[float, Range(gt=0, le=1)] = 0.05

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        return MarkovSchedule(self.client_rates(population), self.max_on, population.seed)


class MarkovSchedule(Schedule):
    """The chains of all clients.

    One round's step draws from that round's key alone, so the state of a round is a function of
    (seed, round). The latest state is kept: asking for rounds in order costs O(N) each, while
    asking for an earlier round than the last replays from the start.

    Args:
        rate_N: Stationary chance of being on, in (0, 1].
        max_on: Largest off-to-on probability.
        seed: The scenario's seed.
    """

    def __init__(self, rate_N: np.ndarray, max_on: float, seed: int) -> None:
        self.rate_N = rate_N
        off_N = max_on * (1 / rate_N - 1)
        self.turn_on_N = np.where(off_N > 1, max_on / np.maximum(off_N, 1), max_on)
        self.turn_off_N = np.minimum(off_N, 1)
        self.seed = seed
        self._round, self._on_N = 0, self._start()

    def _start(self) -> np.ndarray:
        rng = seeds.rng(self.seed, 0, seeds.SERVER, "participation")
        return rng.random(len(self.rate_N)) < self.rate_N

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        if server_round < self._round:
            self._round, self._on_N = 0, self._start()
        while self._round < server_round:
            self._round += 1
            rng = seeds.rng(self.seed, self._round, seeds.SERVER, "participation")
            u_N = rng.random(len(self.rate_N))
            self._on_N = np.where(self._on_N, u_N >= self.turn_off_N, u_N < self.turn_on_N)
        return np.flatnonzero(self._on_N)

    def rates(self) -> np.ndarray:
        """See `Schedule.rates`."""
        return self.rate_N
