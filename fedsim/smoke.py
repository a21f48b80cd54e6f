"""A scenario cut down to see whether it runs at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedsim.client.work import LocalSGD
from fedsim.participation.base import PartOf, Schedule


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """One round, one batch, few of everything.

    Attributes:
        clients: How many clients train, and evaluate.
        test_samples: How much of the test set is used.
    """

    clients: int = 2
    test_samples: int = 128

    def work(self, work: LocalSGD) -> LocalSGD:
        """Return local work of one batch."""
        return replace(work, epochs=None, steps=1)

    def schedule(self, schedule: Schedule, num_clients: int) -> Schedule:
        """Return a schedule of a few clients in every round."""
        return _FewClients(schedule, min(self.clients, num_clients))


class _FewClients(PartOf):
    def __init__(self, schedule: Schedule, count: int) -> None:
        super().__init__(schedule)
        self.count = count

    def select(self, server_round: int) -> np.ndarray:
        chosen = self.schedule.select(server_round)[: self.count]
        return chosen if len(chosen) else np.arange(self.count)

    def rates(self) -> np.ndarray:
        return self.schedule.rates()
