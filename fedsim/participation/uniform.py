"""Uniform sampling without replacement: a fixed number of clients, every set equally likely.

McMahan et al. 2017 (arXiv:1602.05629). A round costs O(cohort), whatever the population.

Differs from the paper: `fraction * N` is rounded to the nearest whole number, at least 1; the paper
does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.participation.base import ParticipationPart, Population, Schedule
from fedsim.participation.sampling import FixedSize, Sampling
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Uniform(ParticipationPart):
    """A cohort of fixed size per round; exactly one of the two fields is set, the other is null.

    Attributes:
        clients_per_round: Cohort size.
        fraction: Cohort size as a share of the population.
    """

    clients_per_round: Annotated[int, Range(ge=1)] | None = 10
    fraction: Annotated[float, Range(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clients_per_round is None and self.fraction is None:
            raise ConfigError(
                "clients_per_round: null, and fraction is null too; set one of them, e.g."
                " participation.clients_per_round=10"
            )
        if self.clients_per_round is not None and self.fraction is not None:
            raise ConfigError(
                f"fraction: {self.fraction} is set together with clients_per_round,"
                f" {self.clients_per_round}; only one of them may be: put"
                " participation.clients_per_round=null beside participation.fraction"
            )

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`. Fails where the cohort is larger than the population."""
        cohort = self.clients_per_round
        if cohort is None:  # then `fraction` is set
            cohort = max(1, round((self.fraction or 1.0) * population.num_clients))
        if cohort > population.num_clients:
            raise ConfigError(
                f"clients_per_round: {cohort} is more than the {population.num_clients} clients of"
                f" the population; allowed: [1, {population.num_clients}]; participation=full takes"
                " everyone"
            )
        return UniformSchedule(population.num_clients, cohort, population.seed)


class UniformSchedule(Schedule):
    """`cohort` of `num_clients` clients per round, drawn with a key per round."""

    def __init__(self, num_clients: int, cohort: int, seed: int) -> None:
        self.num_clients = num_clients
        self.cohort = cohort
        self.seed = seed

    def select(self, server_round: int) -> np.ndarray:
        """See `Schedule.select`."""
        rng = seeds.rng(self.seed, server_round, seeds.SERVER, "participation")
        # Without shuffle, a small draw from a large population allocates only the draw.
        return np.sort(rng.choice(self.num_clients, self.cohort, replace=False, shuffle=False))

    def sampling(self) -> Sampling:
        """See `Schedule.sampling`."""
        return FixedSize(size=self.cohort, population=self.num_clients)

    def rates(self) -> np.ndarray:
        """Return cohort / N for everyone, a read-only view of one number `[N]`."""
        rate = np.float64(self.cohort / self.num_clients)
        return np.broadcast_to(rate, (self.num_clients,))
