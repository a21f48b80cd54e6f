"""Counts the events of a run, and says what they cost: the ledger side of every mechanism.

A round's events are the same in every round; who is hit by how many of them differs. What is
claimed is the claim of whoever was hit most: where each client holds units of its own (examples),
their data sets are disjoint, and a unit is hit only by the rounds that its client took part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from fedsim.client.runtime import ClientRuntime
from fedsim.errors import BudgetError, ConfigError
from fedsim.protection import Line, Protection, Setting, Statement
from privacy.accountant import EpsilonCurve, best_of, delta_warning, epsilon
from privacy.events import Event

BEST_OF = (5, 20, 100)
"""For how many runs, on average, the cost of publishing only the best is stated."""

SMOKE = "A smoke run, of which nothing may be claimed"


class Accounted(Protection):
    """A mechanism with a claim.

    Args:
        claim: All of the statement but epsilon, sampling and accountant; its delta holds.
        sampling: The statement's words for how units are drawn.
        events: What one round releases about whoever takes part in it.
        setting: The run.
        planned: In how many rounds the unit that is hit most takes part.
        budget: The epsilon that must not be crossed; None for none.
        per_client: Whether units belong to clients, so that each client's rounds count for it
            alone.
        population: How many units there are, where that is public.
    """

    def __init__(
        self,
        *,
        claim: Statement,
        sampling: str,
        events: Sequence[Event],
        setting: Setting,
        planned: int,
        budget: float | None,
        per_client: bool,
        population: int | None = None,
    ) -> None:
        warning = population and delta_warning(delta=claim.delta, population=population)
        notes = [*claim.notes, *([warning] if warning else []), *([SMOKE] if setting.smoke else [])]
        self._smoke = setting.smoke
        self._claim = replace(claim, sampling=sampling, notes=tuple(notes))
        self._events = tuple(events)
        self._planned, self._budget, self._per_client = planned, budget, per_client
        self._rounds_N = np.zeros(setting.num_clients if per_client else 1, np.int64)
        self._curve = EpsilonCurve(
            self._events, delta=claim.delta, relation=claim.relation, exact_at=(planned,)
        )

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: one line per round, with the clients where they count."""
        if server_round == 0 or (self._per_client and not len(clients)):
            return ()
        line: Line = {"events": [event.to_json() for event in self._events]}
        return ({**line, "clients": clients.tolist()} if self._per_client else line,)

    def afford(self, lines: Sequence[Line]) -> None:
        """See `Protection.afford`."""
        if self._budget is None or not lines:
            return
        rounds_N = self._rounds_N.copy()
        for line in lines:
            rounds_N[self._hit(line)] += 1
        most = int(rounds_N.max())
        limit = self._budget * (1 + 1e-9)
        if self._curve.at(most) > limit and self._epsilon(most) > limit:
            before = int(self._rounds_N.max())
            claim = self._claim
            raise BudgetError(
                f"privacy.epsilon={self._budget:g}: round {lines[0]['round']} would bring epsilon "
                f"to {self._epsilon(most):.4g}, over the budget; it is {self._epsilon(before):.4g} "
                f"now (delta {claim.delta:g}, per {claim.unit}, {claim.relation}). The model so "
                "far is kept. To go on, start a run with more noise or a larger privacy.epsilon "
                "(null: no budget)"
            )

    def record(self, line: Line) -> None:
        """See `Protection.record`."""
        self._rounds_N[self._hit(line)] += 1

    def spent(self) -> float | None:
        """See `Protection.spent`."""
        return self._curve.at(int(self._rounds_N.max()))

    def budget(self) -> float | None:
        """See `Protection.budget`."""
        return self._budget

    def words(self, epsilon: float) -> str:
        """See `Protection.words`."""
        return self._claim.at(epsilon, "≤ ")

    def statement(self) -> Statement:
        """See `Protection.statement`."""
        return self._stated(int(self._rounds_N.max()))

    def planned(self) -> Statement:
        """See `Protection.planned`."""
        return replace(self._stated(self._planned), best_of=self._best_of())

    def _best_of(self) -> dict[int, float]:
        claim, events = self._claim, self._times(self._planned)
        if self._smoke:
            return {}
        try:
            return {
                runs: best_of(
                    events, mean_runs=runs, delta=claim.delta, relation=claim.relation
                ).epsilon
                for runs in BEST_OF
            }
        except ConfigError:  # not every event has a Renyi divergence: nothing is said then
            return {}

    def _stated(self, rounds: int) -> Statement:
        claim = self._claim
        if self._smoke:  # no ledger is kept, so there is nothing to claim
            return replace(claim, accountant="none")
        spent = epsilon(self._times(rounds), delta=claim.delta, relation=claim.relation)
        sampling = claim.sampling
        if self._per_client:
            sampling += f", in {rounds} rounds of the client that takes part most"
        elif self._planned > 1:
            sampling += f", in {rounds} rounds"
        return replace(claim, epsilon=spent.epsilon, accountant=spent.accountant, sampling=sampling)

    def _epsilon(self, rounds: int) -> float:
        claim = self._claim
        return epsilon(self._times(rounds), delta=claim.delta, relation=claim.relation).epsilon

    def _times(self, rounds: int) -> list[Event]:
        return [event.times(rounds) for event in self._events]

    @staticmethod
    def _hit(line: Line) -> np.ndarray:
        return np.array(line.get("clients", [0]), np.int64)


def is_fresh(noise_source: Literal["auto", "keyed", "system"], *, deployed: bool) -> bool:
    """Return whether a run's noise is the operating system's; `auto`: on real devices.

    Raises:
        ConfigError: Keyed noise on real devices. There a round that is done again need not get the
            same replies, and two releases with one noise give their difference away.
    """
    if noise_source == "keyed" and deployed:
        raise ConfigError(
            "noise_source: keyed noise can be computed by whoever knows the seed, and repeats "
            "itself; on real devices use privacy.noise_source=system (or auto)"
        )
    return noise_source == "system" or deployed


def check_one_holder(runtime: ClientRuntime, what: str) -> None:
    """Check that no sample is held twice, so that what is released once is released once.

    Args:
        runtime: The client side of the run.
        what: The samples' name in the message: `labels`.

    Raises:
        ConfigError: Some are; each holder would release them with randomness of its own.
    """
    partition = runtime.partition
    held = [partition.indices(client) for client in range(partition.num_clients)]
    order = np.concatenate([np.empty(0, np.int64), *held])
    if len(np.unique(order)) < len(order):
        raise ConfigError(
            f"partition: some {what} are held by several clients, or twice, and each would "
            "release them with noise of its own, which is more than one release; use "
            "partition=iid or another that deals each out once"
        )


def most_rounds(setting: Setting) -> int:
    """Return in how many of the planned rounds the client that takes part most does so.

    Known beforehand: the schedule is a function of seed and round alone, never of the data.
    """
    if setting.smoke:
        return 1
    rounds_N = np.zeros(setting.num_clients, np.int64)
    for server_round in range(1, setting.rounds + 1):
        rounds_N[setting.schedule.select(server_round)] += 1
    return int(rounds_N.max())
