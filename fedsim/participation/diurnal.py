"""Diurnal availability: clients come and go with the day, each in its time zone.

    p_n(t) = rate · (1 + swing · sin(2π (t / day + zone_n)))

is the chance that client n is there in the slot of time whose middle is t, in simulated seconds. It
tosses a coin for each slot, keyed by the slot, and stays or stays away until the next. zone_n is
one of `zones` evenly spaced shares of a day, drawn for each client.

A sine is what is usually assumed where no trace is at hand; it was measured on nobody here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.participation.base import ParticipationPart, Population, Schedule
from fedsim.participation.timed import TimedSchedule
from fedsim.parts import Range

_MOST_SLOTS = 2**32


@dataclass(frozen=True, kw_only=True)
class Diurnal(ParticipationPart):
    """Sine-shaped days.

    Attributes:
        rate: Mean chance that a client is there.
        swing: How much of it comes and goes with the day.
        day: Simulated seconds of a day.
        slot: Simulated seconds for which a client stays or stays away.
        zones: Time zones; with 1, all clients have the same day.
        clients_per_round: How many of those who are there are asked; null for all.
    """

    rate: Annotated[float, Range(gt=0, le=1)] = 0.5
    swing: Annotated[float, Range(ge=0, le=1)] = 1.0
    day: Annotated[float, Range(gt=0)] = 86400.0
    slot: Annotated[float, Range(gt=0)] = 1800.0
    zones: Annotated[int, Range(ge=1)] = 24
    clients_per_round: Annotated[int, Range(ge=1)] | None = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate * (1 + self.swing) > 1 + 1e-12:
            raise ConfigError(
                f"rate: {self.rate} with swing={self.swing} is a chance of "
                f"{self.rate * (1 + self.swing):g} at noon; allowed: up to {1 / (1 + self.swing):g}"
            )
        if self.slot > self.day:
            raise ConfigError(f"slot: {self.slot} is longer than a day, {self.day}; allowed: less")

    def bind(self, population: Population) -> Schedule:
        """See `ParticipationPart.bind`."""
        return DiurnalSchedule(self, population)


class DiurnalSchedule(TimedSchedule):
    """Coins of each slot."""

    def __init__(self, part: Diurnal, population: Population) -> None:
        super().__init__(population.num_clients, part.clients_per_round, population.seed)
        self.part = part
        rng = seeds.rng(population.seed, 0, seeds.SERVER, "participation")
        self.zone_N = rng.integers(part.zones, size=population.num_clients) / part.zones
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0))

    def chance(self, slot: int) -> np.ndarray:
        """Return the clients' p_n in the middle of a slot."""
        part = self.part
        turn_N = (slot + 0.5) * part.slot / part.day + self.zone_N
        chance_N: np.ndarray = part.rate * (1 + part.swing * np.sin(2 * np.pi * turn_N))
        return chance_N

    def there(self, seconds: float) -> np.ndarray:
        """See `TimedSchedule.there`.

        Raises:
            ConfigError: So many slots have passed that their keys would no longer be distinct.
        """
        slot = math.floor(seconds / self.part.slot)
        if slot >= _MOST_SLOTS:
            raise ConfigError(
                f"slot: {self.part.slot} s is too short for {seconds:g} simulated seconds; use a "
                "longer one"
            )
        if slot != self._latest[0]:
            rng = seeds.rng(self.seed, slot, seeds.SERVER, "availability")
            self._latest = slot, rng.random(self.num_clients) < self.chance(slot)
        return self._latest[1]

    def next_change(self, seconds: float) -> float:
        """See `Schedule.next_change`."""
        return (math.floor(seconds / self.part.slot) + 1) * self.part.slot

    def share(self) -> np.ndarray:
        """See `TimedSchedule.share`."""
        return np.full(self.num_clients, self.part.rate)
