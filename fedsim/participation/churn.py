"""Users who join and leave: each is there for a stretch of rounds, and may be drawn within it.

    client n joins before round J_n and leaves after round L_n:
    J_n = 1 with probability `present`, else uniform in 2..horizon
    L_n = never with probability 1 - leave, else uniform in J_n..horizon
    in a round, every client that is there takes part with probability `rate`

`horizon` is normally the number of rounds; what comes after it is as its end. Who has left stays
away, and still counts as a client: of the population, whose size does not change.

`rates()` is a client's share of the rounds up to the horizon, in expectation over the coins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.participation.base import ParticipationPart, Population, Schedule
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Churn(ParticipationPart):
    """Clients join and leave mid-run.

    Attributes:
        present: Chance that a client is there from the first round on.
        leave: Chance that it leaves before the end.
        rate: Chance that a client that is there takes part in a round.
        horizon: Rounds over which clients come and go; normally all, `${rounds}`.
    """

    present: Annotated[float, Range(ge=0, le=1)] = 0.5
    leave: Annotated[float, Range(ge=0, le=1)] = 0.3
    rate: Annotated[float, Range(gt=0, le=1)] = 1.0
    horizon: Annotated[int, Range(ge=2)] = 50

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        count = population.num_clients
        rng = seeds.rng(population.seed, 0, seeds.SERVER, "participation")
        late_N = rng.random(count) >= self.present
        join_N = np.where(late_N, rng.integers(2, self.horizon + 1, count), 1)
        leaves_N = rng.random(count) < self.leave
        last_N = np.where(leaves_N, rng.integers(join_N, self.horizon + 1), _NEVER)
        return ChurnSchedule(join_N, last_N, self.rate, self.horizon, population.seed)


_NEVER = 2**62


class ChurnSchedule(Schedule):
    """Stretches `join_N .. last_N` of rounds, both inclusive, and coins within them."""

    def __init__(
        self, join_N: np.ndarray, last_N: np.ndarray, rate: float, horizon: int, seed: int
    ) -> None:
        self.join_N, self.last_N = join_N, last_N
        self.rate, self.horizon, self.seed = rate, horizon, seed

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        rng = seeds.rng(self.seed, server_round, seeds.SERVER, "participation")
        there_N = (self.join_N <= server_round) & (server_round <= self.last_N)
        return np.flatnonzero(there_N & (rng.random(len(there_N)) < self.rate))

    def rates(self) -> np.ndarray:
        """See the module."""
        end_N = np.minimum(self.last_N, self.horizon)
        rate_N: np.ndarray = self.rate * (end_N - self.join_N + 1) / self.horizon
        return rate_N
