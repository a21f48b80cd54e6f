"""Participation that follows the virtual clock: who is there is a function of simulated time.

The loop tells a schedule before every round what time it is (`at`), and asks it then. The time is
the clock's, which checkpoints carry, so that a resumed run asks at the same times. Where nobody who
could be asked is there, the server waits: the clock goes on to the next time at which that may have
changed. An asynchronous server waits only if nobody is busy either.

Who is asked is there when the round begins, and finishes its work, even if it would be gone before
it is done. A client that starts later in an asynchronous round, as another's place becomes free, is
also one that was there when the round began.

When a round begins depends on how long clients were busy before, hence on how many samples they
hold: no privacy mechanism accounts for that, and the simulation refuses them together.
"""

from __future__ import annotations

import abc
import math

import numpy as np

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.participation.base import Schedule

MOST_CHANGES = 100_000
"""How often who is there may change before a server that waits for somebody gives up."""


class TimedSchedule(Schedule):
    """A schedule of clients that are there at a time.

    Args:
        num_clients: N.
        clients_per_round: How many of those who are there are asked; None for all.
        seed: The scenario's.
    """

    timed = True

    def __init__(self, num_clients: int, clients_per_round: int | None, seed: int) -> None:
        self.num_clients, self.clients_per_round, self.seed = num_clients, clients_per_round, seed
        self.now = 0.0

    @abc.abstractmethod
    def there(self, seconds: float) -> np.ndarray:
        """Return who is there at a time, bool `[N]`."""

    @abc.abstractmethod
    def share(self) -> np.ndarray:
        """Return the share of time that each client is there, float64 `[N]`."""

    def at(self, seconds: float) -> None:
        """See `Schedule.at`."""
        self.now = seconds

    def select(self, server_round: int) -> np.ndarray:
        """Return who is asked in a round that begins now."""
        clients = np.flatnonzero(self.there(self.now))
        if self.clients_per_round is None or len(clients) <= self.clients_per_round:
            return clients
        rng = seeds.rng(self.seed, server_round, seeds.SERVER, "participation")
        return np.sort(rng.choice(clients, self.clients_per_round, replace=False))

    def rates(self) -> np.ndarray:
        """Return about how often each client is asked: rounds are no even sample of time."""
        share_N = self.share()
        most, usual = self.clients_per_round, float(share_N.sum())
        return share_N if most is None or usual <= most else share_N * (most / usual)


def begin(schedule: Schedule, server_round: int, seconds: float, *, wait: bool = True) -> float:
    """Tell a schedule what time it is; return when the round begins.

    Args:
        schedule: Any; told is one that is `timed`.
        server_round: Whose participants there must be.
        seconds: Now.
        wait: Whether to let time pass until somebody is there.

    Raises:
        ConfigError: Nobody comes.
    """
    schedule.at(seconds)
    if not wait or not schedule.timed:
        return seconds
    start = seconds
    for _ in range(MOST_CHANGES):
        if len(schedule.select(server_round)):
            return seconds
        later = schedule.next_change(seconds)
        if later is None:  # for good: the rounds that are left are empty
            schedule.at(start)
            return start
        seconds = max(later, math.nextafter(seconds, math.inf))
        schedule.at(seconds)
    raise ConfigError(
        f"participation: from {start:g} to {seconds:g} simulated seconds, nobody was there who "
        f"could be asked in round {server_round}; have clients be there more often, or use another "
        "participation"
    )
