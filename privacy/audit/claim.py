"""The claim that an audit tries to refute: the whole trade-off curve that the ledger allows.

An (ε, δ) is one point of it, and says little of how often a guess may be right. The events that the
run wrote down before each release say all of it, so these are what is audited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.protection import Line, Statement
from fedsim.simulation import Simulation
from privacy import accountant
from privacy.audit.tradeoff import profile_fpr, profile_tpr
from privacy.events import Event

_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A privacy profile, and the statement that it belongs to.

    Attributes:
        statement: As the run makes it.
        epsilon_E: Points of the profile,
        delta_E: and the δ at each, both ways.
    """

    statement: Statement
    epsilon_E: np.ndarray
    delta_E: np.ndarray

    def fpr(self, tpr: float) -> float:
        """Return the lowest false positive rate of a test with this true positive rate."""
        return profile_fpr(tpr, self.epsilon_E, self.delta_E)

    def tpr(self, fpr_F: np.ndarray) -> np.ndarray:
        """Return the highest true positive rates at false positive rates."""
        return profile_tpr(fpr_F, self.epsilon_E, self.delta_E)


def claim_of(statement: Statement, lines: Sequence[Line], client: int | None) -> Claim:
    """Return what a ledger claims for one unit.

    Args:
        statement: Of the run.
        lines: The ledger: `events`, and `clients` where a line is about these alone.
        client: Whose unit it is; None if every client is one: then the claim is that of the client
            that is hit most, where lines are about some clients alone.
    """
    if client is None:
        named = [other for line in lines for other in line.get("clients", [])]
        client = int(np.bincount(named).argmax()) if named else 0
    hit = [line for line in lines if client in line.get("clients", [client])]
    events = [Event.from_json(event) for line in hit for event in line.get("events", [])]
    # Beyond the claim's ε by far, δ is so small that no canaries would see it.
    epsilon_E = np.linspace(0, 2 * min(statement.epsilon, 50.0) + 1, _POINTS)
    delta_E = [
        accountant.delta(events, epsilon=float(epsilon), relation=statement.relation)
        for epsilon in epsilon_E
    ]
    return Claim(statement=statement, epsilon_E=epsilon_E, delta_E=np.array(delta_E))


def busiest(simulation: Simulation) -> int:
    """Return the client that takes part in most of a run's planned rounds."""
    rounds_N = np.zeros(simulation.partition.num_clients, np.int64)
    for server_round in range(1, simulation.last_round + 1):
        rounds_N[simulation.schedule.select(server_round)] += 1
    return int(rounds_N.argmax())
