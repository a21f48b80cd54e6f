"""What every participation part gives: the client indices of each round."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.participation.sampling import Sampling, Unsampled
from fedsim.parts import Part


@dataclass(frozen=True, kw_only=True)
class Population:
    """What a participation model may know of the clients.

    Attributes:
        num_clients: N; clients are 0..N-1.
        seed: The scenario's seed, for keyed draws.
        label_histogram: Gives int64 `[N, C]`, how many samples of each class each client holds;
            a function because it costs O(samples) and few models ask.
    """

    num_clients: int
    seed: int
    label_histogram: Callable[[], np.ndarray]


class Schedule(abc.ABC):
    """Who takes part when: a pure function of (seed, round), whatever was asked before.

    Hence nothing to checkpoint: a resumed run asks for the same rounds and gets the same clients.
    One that is `timed` depends on the virtual clock too; see `fedsim.participation.timed`.
    """

    timed: bool = False
    """Whether a round's clients depend on the simulated time at which it begins."""

    def at(self, seconds: float) -> None:  # noqa: B027  (most schedules have no use for it)
        """Take note of the simulated time, for the rounds asked for from here on."""

    def next_change(self, seconds: float) -> float | None:
        """Return the next time at which somebody may come; None for never."""
        return None

    @abc.abstractmethod
    def select(self, server_round: int) -> np.ndarray:
        """Return the participating client indices of round 1, 2, ...: sorted, distinct, int64.

        May be empty.
        """

    @abc.abstractmethod
    def rates(self) -> np.ndarray:
        """Return each client's long-run participation rate, float64 `[N]`, in [0, 1].

        0 only where it is known that the client never takes part (a trace without it).
        """

    def sampling(self) -> Sampling:
        """Return the law by which a round's clients are drawn, as an accountant may believe it.

        By default, that nothing is gained from sampling: who takes part may be foreseen.
        """
        return Unsampled()


class ParticipationPart(Part, abc.ABC):
    """A participation model, as the `participation` group of a scenario names it."""

    @abc.abstractmethod
    def bind(self, population: Population) -> Schedule:
        """Make the schedule of one run.

        Raises:
            ConfigError: The model cannot be met by this population.
        """


class PartOf(Schedule):
    """Some of the clients of another schedule, which is told the time, and states its law.

    Args:
        schedule: Who would take part.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.timed = schedule.timed

    def at(self, seconds: float) -> None:
        self.schedule.at(seconds)

    def next_change(self, seconds: float) -> float | None:
        return self.schedule.next_change(seconds)

    def sampling(self) -> Sampling:
        return self.schedule.sampling()


class WithSamples(PartOf):
    """A schedule without the clients that hold no training samples: they have nothing to send.

    Args:
        schedule: Who would take part.
        num_samples: Client indices `[K]` -> their numbers of training samples `[K]`.
    """

    def __init__(self, schedule: Schedule, num_samples: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(schedule)
        self.num_samples = num_samples

    def select(self, server_round: int) -> np.ndarray:
        clients = self.schedule.select(server_round)
        return clients[self.num_samples(clients) > 0]

    def rates(self) -> np.ndarray:
        rates = self.schedule.rates()
        return np.where(self.num_samples(np.arange(len(rates))) > 0, rates, 0.0)
