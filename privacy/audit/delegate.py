"""A mechanism that is another one in every respect; audits override what they touch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.client.gradient import GradientEstimator
from fedsim.client.runtime import ClientRuntime
from fedsim.protection import Line, Protection, Statement
from fedsim.records import Params, Replies, Scalar


class Delegate(Protection):
    """Does what `inner` does.

    Args:
        inner: The mechanism.
    """

    def __init__(self, inner: Protection) -> None:
        self.inner = inner

    @property
    def estimator(self) -> GradientEstimator:
        """See `Protection`, as for all below."""
        return self.inner.estimator

    def check(self, runtime: ClientRuntime) -> None:
        self.inner.check(runtime)

    @property
    def public_examples(self) -> float | None:
        return self.inner.public_examples

    @property
    def public_metrics(self) -> Collection[str]:
        return self.inner.public_metrics

    @property
    def replays(self) -> bool:
        return self.inner.replays

    def targets(self, client: int, y: Tensor) -> Tensor:
        return self.inner.targets(client, y)

    def told(self) -> Mapping[str, Scalar]:
        return self.inner.told()

    @property
    def seals(self) -> bool:
        return self.inner.seals

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        return self.inner.seal_(weights, start, clients, server_round, num_examples, told)

    def sealed_like(self) -> Params:
        return self.inner.sealed_like()

    def receive(self, server_round: int, params: Params, replies: Replies) -> Replies | None:
        return self.inner.receive(server_round, params, replies)

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        return self.inner.releases(server_round, clients)

    def afford(self, lines: Sequence[Line]) -> None:
        self.inner.afford(lines)

    def record(self, line: Line) -> None:
        self.inner.record(line)

    def spent(self) -> float | None:
        return self.inner.spent()

    def budget(self) -> float | None:
        return self.inner.budget()

    def words(self, epsilon: float) -> str:
        return self.inner.words(epsilon)

    def statement(self) -> Statement:
        return self.inner.statement()

    def planned(self) -> Statement:
        return self.inner.planned()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)
