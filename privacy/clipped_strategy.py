"""What a strategy must be and say to have its sums made private by `privacy=diff2`."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from fedsim.records import Params
from fedsim.strategy import FedsimStrategy
from privacy.diff2_schedule import Releases, Schedule, of_rounds
from privacy.normal import NoiseSource

CLIP_NORM, CLIPPED, RESTART = "clip-norm", "clipped-fraction", "restart"
"""What the clients of a round are told: c, and whether vectors are gradients or differences; the
metric that says how many of them were longer."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """The local steps of one round: who takes them, and on which of its batches.

    A client's batches are disjoint, and stay as they are for the whole run.

    Attributes:
        worker: The client, drawn without a look at any data.
        batches: One for each step, in order.
    """

    worker: int
    batches: Sequence[int]


class Mechanism(Protocol):
    """What such a strategy asks of the mechanism: `privacy.diff2_protection`.

    Attributes:
        sizes_N: Public numbers of records.
        schedule: How much noise.
        min_clients: The fewest clients whose sum may be opened.
    """

    sizes_N: np.ndarray
    schedule: Schedule

    @property
    def min_clients(self) -> int: ...

    def add_noise_(self, sums: Params, server_round: int, clip_norm: float) -> None:
        """Add the server's noise, if it is trusted, to the sum of all clients, float64."""

    def local_source(self, server_round: int, client: int) -> NoiseSource:
        """Return where a client's noise on its local steps comes from, step by step."""

    def add_(self, sums: Mapping[str, Tensor], source: NoiseSource, std: float) -> None:
        """Add noise of a standard deviation."""


class ClippedSums(FedsimStrategy, abc.ABC):
    """A strategy whose clients send sums of vectors clipped to a public norm.

    The tensors that are trained hold the sum, in place of the client's model.

    Attributes:
        restart, clip_gradients, clip_differences, server_lr, min_examples: See `strategies.diff2`.
        clip_local, local_batches: C3 and m, of strategies with local steps; see
            `strategies.bvr_l_sgd`.
        restarting: Whether the round that was configured last is a restart.
        visit: What it is where it is neither restart nor difference, but local steps.
        mechanism: What makes it private; None for no privacy.
    """

    restart: int
    clip_gradients: float
    clip_differences: float
    server_lr: float
    min_examples: int | None
    clip_local: float = 0.0
    local_batches: int = 1
    restarting: bool = True
    visit: Visit | None = None
    mechanism: Mechanism | None = None

    def releases_in(self, rounds: int, *, seed: int, num_clients: int) -> Releases:
        """Return what so many rounds release if all clients reply in all of them."""
        return of_rounds(rounds, self.restart)
