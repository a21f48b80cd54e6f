"""Twins of a client: they start each round from the model that it got, on samples of their own.

What a client sends in a round depends on its samples and on the model that it got, which whoever
attacks it has seen. So a model that starts there, and is trained as the client is on another part
of its samples, is what the client would have sent with these. Twins do no part of the run: their
randomness is keyed by indices beyond the last client's.

Shapes: K models (the client's own first, then its twins), N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.client.cohort import CohortTrainer
from fedsim.client.gradient import BatchGradient, GradientEstimator, Privatiser
from fedsim.client.half import Batch
from fedsim.client.runtime import ClientRuntime
from fedsim.client.work import LocalSGD
from fedsim.engines.cohort import choose_trainer, default_chunk, even_parts
from fedsim.errors import ConfigError
from fedsim.partition.base import Partition
from fedsim.protection import Protection
from fedsim.records import Params
from privacy.audit.membership import scaled_confidence

_ROWS = 4096
"""Samples, times models, that are scored at once."""


class PartOfSamples(GradientEstimator):
    """A mechanism's estimator, to which some clients hold a part of their samples only.

    Args:
        inner: The estimator.
        part: Client -> positions of the samples that are there; others have all of theirs.
    """

    def __init__(self, inner: GradientEstimator, part: Mapping[int, np.ndarray]) -> None:
        self.inner, self.part = inner, part

    @property
    def plain(self) -> bool:
        return self.inner.plain

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        return self.inner.estimate(loss, params, batch)

    def batches(
        self, work: LocalSGD, seed: int, server_round: int, client: int, n: int
    ) -> list[np.ndarray]:
        own = self.part.get(client)
        if own is None:
            return self.inner.batches(work, seed, server_round, client, n)
        drawn = self.inner.batches(work, seed, server_round, client, len(own))
        return [own[positions] for positions in drawn]

    def check(self, runtime: ClientRuntime) -> None:
        self.inner.check(runtime)

    def check_alone(self, runtime: ClientRuntime) -> None:
        self.inner.check_alone(runtime)

    def begin(self, runtime: ClientRuntime, *, server_round: int, client: int) -> BatchGradient:
        return self.inner.begin(runtime, server_round=server_round, client=client)

    def privatiser(self, like: Params, clients: np.ndarray, server_round: int) -> Privatiser | None:
        return self.inner.privatiser(like, clients, server_round)


class _Same(Partition):
    """Every index holds the samples of one client."""

    def __init__(self, inner: Partition, client: int, indices: np.ndarray) -> None:
        self.inner, self.client, self.own = inner, client, indices
        self.num_clients = 2**32 - 1

    def indices(self, client: int) -> np.ndarray:
        return self.own

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        return np.full(len(clients), len(self.own))

    def transform(self, client: int, x: Tensor) -> Tensor:
        return self.inner.transform(self.client, x)

    @property
    def transforms(self) -> bool:
        return self.inner.transforms


class Twins:
    """The twins of one client of a run.

    Args:
        runtime: Of the run.
        inner: Its mechanism.
        client: Whose twins they are.
        member_KN: Which of its samples each model is trained on; the first row is the client's own.

    Raises:
        ConfigError: Models cannot be trained as one cohort, or hold more than they are sent.
    """

    def __init__(
        self, runtime: ClientRuntime, inner: Protection, client: int, member_KN: np.ndarray
    ) -> None:
        first = runtime.partition.num_clients
        self.index_K = np.arange(first, first + len(member_KN) - 1)
        part = {
            int(k): np.flatnonzero(member)
            for k, member in zip(self.index_K, member_KN[1:], strict=True)
        }
        relabel = runtime.train_targets
        self.runtime = replace(
            runtime,
            partition=_Same(runtime.partition, client, runtime.samples(client)),
            holdout=0.0,
            protection=inner,
            estimator=PartOfSamples(inner.estimator, part),
            train_targets=relabel and (lambda _, y: relabel(client, y)),
        )
        self.trainer = self._trainer()

    def _trainer(self) -> CohortTrainer:
        trainer, _, why = choose_trainer(self.runtime, "auto")
        if trainer is None:
            raise ConfigError(
                f"audit=membership: shadow models are trained as one cohort, which this model does "
                f"not allow: {why}; use a model of standard layers (fedsim list model)"
            )
        return trainer

    def train(self, server_round: int, start: Params, own: Params) -> np.ndarray:
        """Return φ of every sample under every model after a round, `[K, N]`.

        Args:
            server_round: 1, 2, ...
            start: The model that the client got.
            own: The model that it sent.
        """
        mine = {name: tensor.unsqueeze(0) for name, tensor in own.items()}
        phi = [self.scores(mine)]
        for piece in even_parts(len(self.index_K), default_chunk(self.runtime)):
            clients = self.index_K[piece]
            with torch.enable_grad():
                chunk = self.trainer.train(clients, server_round, start, {})
            phi.append(self.scores(chunk.arrays)[np.argsort(chunk.client_index)])
        return np.concatenate(phi)

    @torch.no_grad()
    def scores(self, weights: Params) -> np.ndarray:
        """Return φ of every sample under some models, `[K, N]`."""
        count = len(next(iter(weights.values())))
        pool = self.runtime.pool([int(self.index_K[0])])
        phi = []
        for rows in np.array_split(pool.rows[0], -(-len(pool.rows[0]) * count // _ROWS)):
            x, y = pool.take(rows)
            outputs = self.trainer.models(weights, x.expand(count, *x.shape))
            flat = outputs.flatten(0, 1).double().cpu().numpy()
            label = np.tile(y.cpu().numpy(), count)
            phi.append(scaled_confidence(flat, label).reshape(count, -1))
        return np.concatenate(phi, axis=1)
