"""The contract of a privacy mechanism, as the `privacy` group of a scenario names it.

A mechanism may act at four places; one that does not act at a place leaves the default there:

    on the labels that a client trains on        `targets`    (label-level)
    on the gradient of each batch                `estimator`  (example-level)
    on what leaves a client                      `seal_`      (user-level, local)
    on what the server makes of the replies      `receive`    (user-level, central)

and says, before every round, what that round will release (`releases`): lines of the run's ledger,
which are on the disk before anything is sent. What may be claimed is computed from these alone.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.client.gradient import GradientEstimator, Plain
from fedsim.client.work import LocalSGD
from fedsim.data.dataset import Dataset
from fedsim.participation.base import Schedule
from fedsim.parts import Part
from fedsim.protection.statement import Statement
from fedsim.records import Params, Replies, Scalar

if TYPE_CHECKING:
    from fedsim.client.runtime import ClientRuntime

Line = dict[str, Any]
"""One line of a ledger: plain data. `round`, and what the mechanism needs to count it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a mechanism may know of its run.

    Attributes:
        seed, rounds: Of the scenario.
        num_clients: N.
        schedule: Who takes part; says by itself how it draws.
        work: The local steps.
        strategy: Who uses what the clients send.
        dataset: Its task and shapes; never its values.
        update_size: P, how many floating-point numbers the model is that clients send.
        deployed: Whether clients are devices of their own, so that noise must come from the
            operating system's generator.
        smoke: Whether the run is cut down to see if it runs; nothing may be claimed of it.
    """

    seed: int
    rounds: int
    num_clients: int
    schedule: Schedule
    work: LocalSGD
    strategy: Strategy
    dataset: Dataset
    update_size: int
    deployed: bool = False
    smoke: bool = False


class Protection:
    """What a mechanism does in one run; this one does nothing."""

    @property
    def estimator(self) -> GradientEstimator:
        """How a batch becomes a gradient."""
        return Plain()

    def check(self, runtime: ClientRuntime) -> None:
        """Check that the run's model and client half can be protected.

        Raises:
            ConfigError: They cannot; the message says what would do.
        """
        self.estimator.check(runtime)

    @property
    def public_examples(self) -> float | None:
        """What clients report as their number of samples where the true one is private.

        Where it is not None, they report no metric of their training either.
        """
        return None

    @property
    def public_metrics(self) -> Collection[str]:
        """Names of the metrics that are reported even so, by halves that do their work whole."""
        return ()

    @property
    def replays(self) -> bool:
        """Whether doing a round again releases the same values: noise is keyed, not fresh."""
        return True

    def targets(self, client: int, y: Tensor) -> Tensor:
        """Return the targets that a client trains on."""
        return y

    def told(self) -> Mapping[str, Scalar]:
        """Return what the server tells every client of this round besides the model."""
        return {}

    @property
    def seals(self) -> bool:
        """Whether `seal_` does anything."""
        return False

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        """Make K clients' models fit to leave them, in place; return what is sent besides.

        Args:
            weights: name -> `[K, ...]`, after the local work.
            start: The model as it was received.
            clients: `[K]`.
            server_round: 1, 2, ...
            num_examples: Their training samples, `[K]`.
            told: What `told` returned on the server.
        """
        return {}

    def sealed_like(self) -> Params:
        """Return an example of what `seal_` returns for one client, for admission."""
        return {}

    def receive(self, server_round: int, params: Params, replies: Replies) -> Replies | None:
        """Return the one reply that a strategy sees in place of `replies`; None: it sees these."""
        return None

    # --- what is claimed -------------------------------------------------------------------------

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """Return the ledger lines of what the next round will release; round 0: before any."""
        return ()

    def afford(self, lines: Sequence[Line]) -> None:
        """Check that lines not yet recorded are within the budget.

        Raises:
            BudgetError: They are not.
        """

    def record(self, line: Line) -> None:
        """Count a line in."""

    def spent(self) -> float | None:
        """Return an upper bound of epsilon for all that is recorded; quick. None: no claim."""
        return None

    def budget(self) -> float | None:
        """Return the epsilon that `afford` keeps to, at the claim's delta; None: no budget."""
        return None

    def words(self, epsilon: float) -> str:
        """Return what `spent` returned with everything without which it means nothing."""
        return ""

    def statement(self) -> Statement:
        """Return the claim for all that is recorded."""
        return Statement(mechanism="none")

    def planned(self) -> Statement:
        """Return the claim for the run as it is planned."""
        return Statement(mechanism="none")

    def state_dict(self) -> dict[str, Any]:
        """Return all state that the next round depends on, ledger aside: arrays and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class PrivacyPart(Part, abc.ABC):
    """A mechanism, as the `privacy` group of a scenario names it."""

    hides_sizes: ClassVar[bool] = False
    """Whether how many samples a client holds is itself private. Then empty clients take part like
    all others, and held-out samples are chosen by a coin of each sample's own."""

    reads_labels: ClassVar[bool] = False
    """Whether who takes part may depend on the labels that clients hold; no claim covers that."""

    releases_on_client: ClassVar[bool] = False
    """Whether the model that a client sends may be seen by anybody, as far as it protects: what is
    made of it on the client, an encoding with less in it, costs nothing more."""

    protects_answers: ClassVar[bool] = False
    """Whether it protects what clients answer to a strategy that asks (`fedsim.query`)."""

    @abc.abstractmethod
    def bind(self, setting: Setting) -> Protection:
        """Make the mechanism of one run.

        Raises:
            ConfigError: It cannot protect this run; the message says why and what would do.
        """


@dataclass(frozen=True, kw_only=True)
class NoPrivacy(PrivacyPart):
    """Nothing is protected."""

    reads_labels = True
    releases_on_client = True
    protects_answers = True

    def bind(self, setting: Setting) -> Protection:
        """See `PrivacyPart.bind`."""
        return Protection()
