"""Local work that is no sequence of steps: what `ClientHalf.run` is given, and what it returns.

One function for all engines: those that take clients one by one call it with one client, the cohort
engine with many. All of them work at models that they share, so that per-sample gradients need no
axis for clients: their samples are laid end to end, and `torch.func.vmap` takes a piece at a time.

Cost of per-sample gradients: one forward and one backward pass, and B·P numbers for B samples of a
piece and P of the model; a piece is as large as `MEMORY` holds. Layer rules would need less for
their norms, but not for those of a *difference* of gradients at two models.

Shapes: K clients, B samples of a piece, `[B, ...]` one gradient per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.differentiate import functional_gradient
from fedsim.client.half import UNLABELLED, Batch
from fedsim.client.plan import make_plan
from fedsim.client.runtime import ClientRuntime, Pool
from fedsim.records import NUM_EXAMPLES, Chunk, Params, Scalar

MEMORY = 2**25
"""Bytes of per-sample gradients at one model that are held at a time."""

PIECE = 4096
"""Samples in a piece, at most."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What K clients send.

    Attributes:
        arrays: name -> `[K, ...]`, of the names, shapes and dtypes of the model: a model, or what
            the server half takes in its place.
        upload: name -> `[K, ...]`: further tensors.
        metrics: name -> `[K]`; not sent where a privacy mechanism hides them.
    """

    arrays: Params
    upload: Params = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Cohort:
    """K clients of one round, as `ClientHalf.run` sees them.

    Attributes:
        clients: Who they are, int64 `[K]`.
        start: The model as they received it; or the question.
        arrays: Their own `client-arrays`, name -> `[K, ...]`.
        told: The configuration that came with the model.
        server_round: 1, 2, ...
        counts: Their numbers of samples, int64 `[K]`.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        clients: np.ndarray,
        server_round: int,
        params: Params,
        client_arrays: Params,
        told: Mapping[str, Scalar],
    ) -> None:
        self._runtime = runtime
        self.start, self.arrays, self.told = params, client_arrays, told
        self.clients, self.server_round = clients, server_round
        self._pool = runtime.pool(clients.tolist())
        self.counts = np.array([len(rows) for rows in self._pool.rows], np.int64)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def seed(self) -> int:
        """The scenario's."""
        return self._runtime.seed

    def inputs(self, row: int) -> Tensor:
        """Return the samples of one client, `[n, ...]`, without their targets."""
        return self._pool.x[torch.from_numpy(self.rows(row)).to(self._pool.x.device)]

    def rows(self, k: int) -> np.ndarray:
        """Return the samples of client k of the cohort, as `batches` takes them."""
        return self._pool.rows[k]

    def targets(self, row: int) -> Tensor:
        """Return the targets of the samples of one client, `[n, ...]`."""
        return self._pool.y[torch.from_numpy(self._pool.rows[row]).to(self._pool.y.device)]

    @property
    def model(self) -> nn.Module:
        """The architecture; its own weights are not the clients'."""
        return self._runtime.model

    @property
    def lr(self) -> float:
        """This round's learning rate."""
        return self._runtime.work.lr_at(self.server_round)

    @property
    def momentum(self) -> float:
        """Of the `client` group."""
        return self._runtime.work.momentum

    @property
    def weight_decay(self) -> float:
        """Of the `client` group."""
        return self._runtime.work.weight_decay

    def stacked(self, *, held_out: bool = False) -> tuple[Batch, Tensor]:
        """Return all clients' samples `[K, B, ...]`, padded with zeros, and which are true, bool.

        Of training samples, those whose targets are known.
        """
        batches = [self.samples(k, held_out=held_out) for k in range(len(self))]
        return stack_batches([b if held_out else _labelled(b) for b in batches])

    def samples(self, row: int, *, held_out: bool = False) -> Batch:
        """Return one client's training, or held-out, samples."""
        pool = self._held_out if held_out else self._pool
        x, y = pool.take(pool.rows[row])
        return Batch(x=x, y=y)

    def steps(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the local steps of the `client` group: all clients' next batches at once.

        Each is a batch `[K, B, ...]`, and which of its samples are true, bool `[K, B]`: none of a
        client that has finished.
        """
        plan = make_plan(self._runtime, self.clients, self.server_round, pool=self._pool)
        back = np.argsort(plan.order)
        for rows_KB, lengths_K in zip(plan.rows[:, back], plan.lengths[:, back], strict=True):
            width = max(1, int(lengths_K.max()))
            index = torch.from_numpy(rows_KB[:, :width].flatten()).to(plan.x.device)
            true_KB = torch.from_numpy(np.arange(width) < lengths_K[:, None]).to(plan.x.device)
            # Whole rows are copied, where `plan.x[index]` would copy number by number.
            x, y = (t.index_select(0, index) for t in (plan.x, plan.y))
            shape = tuple(true_KB.shape)
            yield Batch(x=x.view(*shape, *x.shape[1:]), y=y.view(*shape, *y.shape[1:])), true_KB

    @cached_property
    def _held_out(self) -> Pool:
        return self._runtime.pool(self.clients.tolist(), held_out=True)

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the tensors that are trained."""
        return self._runtime.trainable

    def batches(self, rows_B: np.ndarray) -> Iterator[Batch]:
        """Yield some samples, as many at a time as fit."""
        size = sum(self.start[name].nbytes for name in self.trainable)
        step = max(1, min(PIECE, MEMORY // max(1, size)))
        for first in range(0, len(rows_B), step):
            x, y = self._pool.take(rows_B[first : first + step])
            yield Batch(x=x, y=y)

    def pieces(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield all clients' samples, and whose each is: int64 `[B]`, rows of the cohort."""
        owner, first = np.repeat(np.arange(len(self)), self.counts), 0
        for batch in self.batches(np.concatenate(self._pool.rows)):
            whose = owner[first : first + len(batch.y)]
            yield batch, torch.from_numpy(whose).to(batch.x.device)
            first += len(batch.y)

    def gradients(self, params: Params, batch: Batch) -> tuple[Params, Tensor]:
        """Return each sample's gradient of the half's loss, `[B, ...]`, and its loss, `[B]`.

        As for evaluation: without dropout, and with the normalisation layers' running statistics.
        """
        runtime = self._runtime
        context = runtime.context(
            params=self.start,
            client_arrays={},
            server_round=self.server_round,
            steps=0,
            grad=functional_gradient,
        )

        def one(x: Tensor, y: Tensor) -> tuple[Params, Tensor]:
            alone = Batch(x=x.unsqueeze(0), y=y.unsqueeze(0))
            return runtime.half.loss_gradient(params, alone, context)

        runtime.model.eval()
        with torch.no_grad():
            grads, losses = torch.vmap(one)(batch.x, batch.y)
        return grads, losses


def _labelled(batch: Batch) -> Batch:
    known = batch.y != UNLABELLED
    return Batch(x=batch.x[known], y=batch.y[known])


def stack_batches(batches: list[Batch]) -> tuple[Batch, Tensor]:
    """Return batches as one, `[K, B, ...]`, padded with zeros, and which samples are true, bool."""
    width = max(1, *(len(batch.y) for batch in batches))
    first = batches[0]
    x = first.x.new_zeros(len(batches), width, *first.x.shape[1:])
    y = first.y.new_zeros(len(batches), width)
    true = torch.zeros(len(batches), width, dtype=torch.bool, device=y.device)
    for k, batch in enumerate(batches):
        x[k, : len(batch.y)], y[k, : len(batch.y)] = batch.x, batch.y
        true[k, : len(batch.y)] = True
    return Batch(x=x, y=y), true


def run_whole(
    runtime: ClientRuntime,
    *,
    clients: np.ndarray,
    server_round: int,
    params: Params,
    client_arrays: Params,
    told: Mapping[str, Scalar],
) -> Chunk:
    """Do the whole work of some clients, and make it fit to leave them."""
    cohort = Cohort(
        runtime,
        clients=clients,
        server_round=server_round,
        params=params,
        client_arrays=client_arrays,
        told=told,
    )
    worked, upload = runtime.half.run(cohort), {}
    protection, public = runtime.protection, runtime.protection.public_examples
    if protection.seals:
        with torch.no_grad():
            upload = protection.seal_(
                worked.arrays, params, clients, server_round, cohort.counts, told
            )
    metrics = {name: values.double().cpu().numpy() for name, values in worked.metrics.items()}
    metrics = {NUM_EXAMPLES: cohort.counts.astype(np.float64), **metrics}
    if public is not None:
        shown = protection.public_metrics
        metrics = {
            NUM_EXAMPLES: np.full(len(clients), public),
            **{name: values for name, values in metrics.items() if name in shown},
        }
    return Chunk(
        client_index=clients,
        arrays=worked.arrays,
        client_arrays={**worked.upload, **upload},
        metrics=metrics,
    )


def score_whole(
    runtime: ClientRuntime,
    *,
    clients: np.ndarray,
    server_round: int,
    params: Params,
    client_arrays: Params,
) -> dict[str, np.ndarray]:
    """Return the columns that the half's `score` gives of some clients, float64 `[K]` each.

    A client without held-out samples has zeros, and counts for none.
    """
    device = runtime.dataset.train_x.device
    cohort = Cohort(
        runtime,
        clients=clients,
        server_round=server_round,
        params=params,
        client_arrays={name: rows.to(device) for name, rows in client_arrays.items()},
        told={},
    )
    counts_K = np.array([len(cohort.samples(k, held_out=True).y) for k in range(len(cohort))])
    scores = runtime.half.score(cohort)
    columns = {name: values.double().cpu().numpy() for name, values in scores.items()}
    empty = {name: np.where(counts_K > 0, column, 0.0) for name, column in columns.items()}
    return {NUM_EXAMPLES: counts_K.astype(np.float64), **empty}
