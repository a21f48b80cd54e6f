"""K clients' local work at once: the vectorised twin of `fedsim.client.sequential`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.client.differentiate import functional_gradient
from fedsim.client.half import Batch
from fedsim.client.objective import sample_scores
from fedsim.client.plan import make_plan
from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import TRAIN_LOSS, first_batch
from fedsim.client.steps import StepFactory, length_groups
from fedsim.records import NUM_EXAMPLES, Chunk, Params

StackedModels = Callable[[Params, Tensor], Tensor]
"""(weights `[K, ...]`, inputs `[K, B, ...]`) -> outputs `[K, B, ...]`, in evaluation mode."""


class CohortTrainer:
    """Trains chunks of clients, reusing one block of memory for their weights.

    Args:
        runtime: Data, model, client half.
        make_step: How a step is taken; see `fedsim.client.steps`.
        models: How K models are evaluated at once.
    """

    def __init__(
        self, runtime: ClientRuntime, make_step: StepFactory, models: StackedModels
    ) -> None:
        self.runtime = runtime
        self.make_step = make_step
        self.models = models
        self._memory: Params = {}
        # An integer tensor times a float would be float32 whatever the model's precision.
        self._precision = next(
            (t for t in runtime.dtypes.values() if t.is_floating_point), torch.get_default_dtype()
        )

    def train(
        self, clients: np.ndarray, server_round: int, params: Params, client_arrays: Params
    ) -> Chunk:
        """Train `clients` from `params`; `client_arrays[name]` is `[K, ...]` in their order.

        The chunk's arrays are valid until the next call.
        """
        plan = make_plan(self.runtime, clients, server_round)
        device = plan.x.device
        order = torch.from_numpy(plan.order).to(device)
        step = self.make_step(
            self.runtime,
            weights=self._copies(params, len(clients)),
            start=params,
            client_arrays={name: rows.to(device)[order] for name, rows in client_arrays.items()},
            steps_K=torch.from_numpy((plan.lengths > 0).sum(0)).to(device, self._precision),
            server_round=server_round,
        )
        dropout = self.runtime.dropout(server_round, plan.clients.tolist())
        rows_SKB = torch.from_numpy(plan.rows).to(device)
        loss_K = torch.zeros(len(clients), dtype=torch.float64, device=device)
        for s, lengths in enumerate(plan.lengths):
            active, width = int((lengths > 0).sum()), int(lengths.max())
            index = rows_SKB[s, :active, :width]
            counts = torch.from_numpy(lengths[:active]).to(device)
            step.step = s
            losses = step.run(plan.x[index], plan.y[index], lengths[:active], dropout[:active])
            loss_K[:active] += losses * counts
        seen = np.maximum(plan.lengths.sum(0), 1)
        return Chunk(
            client_index=plan.clients,
            arrays=step.weights,
            client_arrays=step.upload(),
            metrics={
                NUM_EXAMPLES: plan.num_examples.astype(np.float64),
                TRAIN_LOSS: loss_K.cpu().numpy() / seen,
            },
        )

    def _copies(self, params: Params, count: int) -> Params:
        for name, tensor in params.items():
            held = self._memory.get(name)
            if held is None or len(held) < count:
                self._memory[name] = tensor.new_empty((count, *tensor.shape))
            self._memory[name][:count].copy_(tensor.expand(count, *tensor.shape))
        return {name: self._memory[name][:count] for name in params}


@torch.no_grad()
def evaluate_clients(runtime: ClientRuntime, clients: np.ndarray, params: Params) -> Chunk:
    """Score one shared model on each client's held-out samples, in a few large batches."""
    pool = runtime.pool(clients.tolist(), held_out=True)
    counts = np.array([len(rows) for rows in pool.rows], np.int64)
    owner = torch.from_numpy(np.repeat(np.arange(len(clients)), counts)).to(pool.x.device)
    x, y = pool.take(np.concatenate(pool.rows))
    runtime.model.eval()
    sums: dict[str, torch.Tensor] = {}
    parts = (torch.split(t, 4096) for t in (x, y, owner))
    for x_part, y_part, who in zip(*parts, strict=True):
        outputs = runtime.apply(params, x_part)
        for name, values in sample_scores(runtime.dataset.task, outputs, y_part).items():
            total = sums.setdefault(name, values.new_zeros(len(clients), dtype=torch.float64))
            total.index_add_(0, who, values.double())
    means = {name: total.cpu().numpy() / np.maximum(counts, 1) for name, total in sums.items()}
    metrics = {NUM_EXAMPLES: counts.astype(np.float64), **means}
    return Chunk(client_index=clients, arrays={}, metrics=metrics)


def evaluate_personal(
    trainer: CohortTrainer,
    clients: np.ndarray,
    server_round: int,
    params: Params,
    client_arrays: Params,
) -> Chunk:
    """Score each client's own view of `params` on its held-out samples; K models at once.

    Samples are padded to the longest client's, and taken in slices of at most 4096 in all.
    """
    runtime = trainer.runtime
    pool = runtime.pool(clients.tolist(), held_out=True)
    counts = np.array([len(rows) for rows in pool.rows], np.int64)
    some = np.flatnonzero(counts)
    sums: dict[str, np.ndarray] = {}
    if len(some):
        weights = personal_models(
            runtime,
            clients[some],
            server_round,
            params,
            {name: rows[torch.from_numpy(some)] for name, rows in client_arrays.items()},
        )
        width = max(1, 4096 // len(some))
        for start in range(0, int(counts.max()), width):
            index_KB = np.arange(start, min(start + width, int(counts.max())))
            # Padding repeats a client's last sample, and is not counted.
            rows_KB = np.stack([pool.rows[k][np.minimum(index_KB, counts[k] - 1)] for k in some])
            x, y = pool.take(rows_KB)
            true_KB = torch.from_numpy(index_KB < counts[some, None]).to(x.device)
            with torch.no_grad():
                outputs = trainer.models(weights, x)
            scores = sample_scores(runtime.dataset.task, outputs.flatten(0, 1), y.flatten(0, 1))
            for name, values in scores.items():
                kept_KB = torch.where(true_KB, values.view(true_KB.shape).double(), 0)
                total = sums.setdefault(name, np.zeros(len(clients)))
                total[some] += kept_KB.sum(1).cpu().numpy()
    means = {name: total / np.maximum(counts, 1) for name, total in sums.items()}
    metrics = {NUM_EXAMPLES: counts.astype(np.float64), **means}
    return Chunk(client_index=clients, arrays={}, metrics=metrics)


def personal_models(
    runtime: ClientRuntime,
    clients: np.ndarray,
    server_round: int,
    params: Params,
    client_arrays: Params,
) -> Params:
    """Return the models that clients score, name -> `[K, ...]`."""
    batches = [first_batch(runtime, client, server_round) for client in clients.tolist()]
    device = batches[0].x.device
    lengths = np.array([len(batch.y) for batch in batches])
    runtime.model.eval()

    def one(x: Tensor, y: Tensor, arrays: Params) -> Params:
        context = runtime.context(
            params=params,
            client_arrays=arrays,
            server_round=server_round,
            steps=0,
            grad=functional_gradient,
        )
        return runtime.half.evaluated(params, Batch(x=x, y=y), context)

    models = {name: t.new_empty((len(clients), *t.shape)) for name, t in params.items()}
    for _, index in length_groups(lengths, device):
        group = range(len(clients))[index] if isinstance(index, slice) else index.tolist()
        x, y = (torch.stack([getattr(batches[k], name) for k in group]) for name in ("x", "y"))
        arrays = {name: rows.to(device)[index] for name, rows in client_arrays.items()}
        for name, rows in torch.vmap(one)(x, y, arrays).items():
            models[name][index] = rows
    return models
