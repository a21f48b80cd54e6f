"""What every attack gives: who is malicious, and what they do to their targets or their updates.

Who lies is drawn by a key of its own, and lying changes nothing but what is trained on or sent:
honest clients draw the same batches, and do the same work on the same model, with and without it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from flwr.app import Message
from torch import Tensor

from fedsim import seeds
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from fedsim.records import Params

Targets = Callable[[int, Tensor], Tensor]
"""(client, its true targets) -> the targets that it trains on; see `ClientRuntime`."""

Tamper = Callable[[Iterable[Message], Params], Iterable[Message]]
"""(replies of one training exchange, the model that was sent) -> what arrives instead."""


@dataclass(frozen=True, kw_only=True)
class Attackers:
    """An attack, bound to one run's population.

    Attributes:
        clients: Who is malicious: sorted client indices; nobody, without an attack.
        targets: What they do to their training targets; None for nothing.
        tamper: What they do to the replies of a training exchange; None for nothing.
    """

    clients: np.ndarray = field(default_factory=lambda: np.arange(0))
    targets: Targets | None = None
    tamper: Tamper | None = None


class AttackPart(Part, abc.ABC):
    """An attack, as the `attack` group of a scenario names it."""

    @abc.abstractmethod
    def bind(
        self,
        *,
        num_clients: int,
        seed: int,
        dataset: Dataset,
        client_index: Callable[[int], int],
    ) -> Attackers:
        """Draw who is malicious, and return what they do.

        Args:
            num_clients: N; clients are 0..N-1.
            seed: The scenario's.
            dataset: All samples, for attacks on targets.
            client_index: Node id -> client index, for attacks on replies.

        Raises:
            ConfigError: Everybody would be malicious, or there are no such clients, or the attack
                does not fit the data set's task.
        """


@dataclass(frozen=True, kw_only=True)
class SomeMalicious(AttackPart):
    """An attack by a share of the clients.

    Attributes:
        share: Share of the clients that are malicious, rounded to whole clients; 0 for nobody.
            They are drawn from the scenario's seed; a larger share keeps those of a smaller one.
        clients: The malicious clients themselves, in the place of a share.
    """

    share: Annotated[float, Range(ge=0, le=1)] = 0.2
    clients: Annotated[tuple[int, ...], Range(ge=0)] | None = None

    def bind(
        self,
        *,
        num_clients: int,
        seed: int,
        dataset: Dataset,
        client_index: Callable[[int], int],
    ) -> Attackers:
        clients = self.draw(num_clients, seed)
        if not len(clients):
            return Attackers(clients=clients)
        return self.arm(clients, dataset, client_index)

    @abc.abstractmethod
    def arm(
        self, clients: np.ndarray, dataset: Dataset, client_index: Callable[[int], int]
    ) -> Attackers:
        """Return what `clients`, at least one, do; see `bind`."""

    def draw(self, num_clients: int, seed: int) -> np.ndarray:
        """Return the malicious clients, sorted int64."""
        if self.clients is not None:
            return self._listed(self.clients, num_clients)
        count = round(self.share * num_clients)
        if self.share and not count:
            raise ConfigError(
                f"share: {self.share:g} of {num_clients} clients is nobody; set attack.share to "
                f"{1 / num_clients:.2g} or more, or attack=none"
            )
        if count >= num_clients:
            raise ConfigError(
                f"share: {self.share:g} of {num_clients} clients makes everybody malicious; leave "
                f"an honest one, e.g. attack.share=0.2"
            )
        order = seeds.rng(seed, 0, seeds.SERVER, "attack").permutation(num_clients)
        chosen: np.ndarray = np.sort(order[:count])
        return chosen

    @staticmethod
    def _listed(listed: tuple[int, ...], num_clients: int) -> np.ndarray:
        clients = np.array(sorted(set(listed)), np.int64)
        if len(clients) < len(listed):
            raise ConfigError(f"clients: {list(listed)} names a client twice")
        if len(clients) and clients[-1] >= num_clients:
            raise ConfigError(
                f"clients: there is no client {clients[-1]}; clients are 0..{num_clients - 1}"
            )
        if len(clients) >= num_clients:
            raise ConfigError(
                f"clients: all {num_clients} clients are listed; leave an honest one out"
            )
        return clients
