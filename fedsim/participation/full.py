"""Full participation: everyone, every round (cross-silo)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.participation.base import ParticipationPart, Population, Schedule


@dataclass(frozen=True, kw_only=True)
class Full(ParticipationPart):
    """Every client takes part in every round."""

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        return FullSchedule(population.num_clients)


class FullSchedule(Schedule):
    """All of `num_clients` clients, always."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def select(self, server_round: int) -> np.ndarray:
        """Return 0..N-1."""
        return np.arange(self.num_clients, dtype=np.int64)

    def rates(self) -> np.ndarray:
        """Return ones `[N]`."""
        return np.ones(self.num_clients)
