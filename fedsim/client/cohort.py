"""K clients' local work at once: the vectorised twin of `fedsim.client.sequential`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.client.chain import ChainStep, chain_step, takes_plain_steps
from fedsim.client.differentiate import functional_gradient
from fedsim.client.half import Batch
from fedsim.client.objective import WEIGHTED_F1, confusion, sample_scores, weighted_f1
from fedsim.client.plan import Plan, make_plan
from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import NOTHING, TRAIN_LOSS, first_batch
from fedsim.client.steps import StepFactory, length_groups
from fedsim.client.whole import run_whole
from fedsim.layers.model import StackedModel
from fedsim.records import NUM_EXAMPLES, PART_BYTES, Chunk, Params, PayloadOf, Scalar

StackedModels = Callable[[Params, Tensor], Tensor]
"""(weights `[K, ...]`, inputs `[K, B, ...]`) -> outputs `[K, B, ...]`, in evaluation mode."""


class CohortTrainer:
    """Trains chunks of clients, reusing one block of memory for their weights.

    Args:
        runtime: Data, model, client half.
        make_step: How a step is taken; see `fedsim.client.steps`.
        models: How K models are evaluated at once.
        stacked: The model, where plain steps of it may be taken on factors; see
            `fedsim.client.chain`.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        make_step: StepFactory,
        models: StackedModels,
        stacked: StackedModel | None = None,
    ) -> None:
        self.runtime = runtime
        self.make_step = make_step
        self.models = models
        self.stacked = stacked if takes_plain_steps(runtime) else None
        self._memory: Params = {}
        # An integer tensor times a float would be float32 whatever the model's precision.
        self._precision = next(
            (t for t in runtime.dtypes.values() if t.is_floating_point), torch.get_default_dtype()
        )

    def train(
        self,
        clients: np.ndarray,
        server_round: int,
        params: Params,
        client_arrays: Params | PayloadOf,
        told: Mapping[str, Scalar] = NOTHING,
    ) -> Chunk:
        """Train `clients` from `params`; `client_arrays[name]` is `[K, ...]` in their order.

        Or it is a function that returns those of some clients. `told` is the configuration that
        came with the model.

        The chunk's arrays are valid until the next call.
        """
        if self.runtime.half.overrides("run"):
            own = client_arrays(clients) if callable(client_arrays) else client_arrays
            return run_whole(
                self.runtime,
                clients=clients,
                server_round=server_round,
                params=params,
                client_arrays={
                    name: rows.to(self.runtime.dataset.train_x.device) for name, rows in own.items()
                },
                told=told,
            )
        plan = make_plan(self.runtime, clients, server_round)
        device, own = plan.x.device, self._own(client_arrays, plan)
        make_step, held = self._step_maker(plan, params)
        make_step = partial(
            make_step,
            self.runtime,
            weights=self._copies(held, len(clients)) if params else self._rooms(own),
            start=params,
            client_arrays=own,
            clients=plan.clients,
            steps_K=torch.from_numpy(plan.steps).to(device, self._precision),
            server_round=server_round,
        )
        gradient: Params = {}
        if self.runtime.half.full_gradient:
            gradient = self._full_gradients(plan.clients, server_round, make_step)
        step = make_step(gradient=gradient)
        dropout = self.runtime.dropout(server_round, plan.clients.tolist())
        rows_SKB = torch.from_numpy(plan.rows).to(device)
        y_SKB = plan.y[rows_SKB]
        loss_K = torch.zeros(len(clients), dtype=torch.float64, device=device)
        counts_SK = torch.from_numpy(plan.lengths).to(device)
        for s, (active, width) in enumerate(plan.extents()):
            if isinstance(step, ChainStep) and step.inputs is not None:
                x = step.inputs[:active, s, :width]
            else:
                x = self._gather(plan.x, rows_SKB[s, :active, :width])
            step.step, lengths = s, plan.lengths[s, :active]
            losses = step.run(x, y_SKB[s, :active, :width], lengths, dropout[:active])
            loss_K[:active] += losses * counts_SK[s, :active]
        seen = np.maximum(plan.lengths.sum(0), 1)
        protection, public = self.runtime.protection, self.runtime.protection.public_examples
        metrics = {
            NUM_EXAMPLES: plan.num_examples.astype(np.float64),
            TRAIN_LOSS: loss_K.cpu().numpy() / seen,
        }
        if public is not None:
            metrics = {NUM_EXAMPLES: np.full(len(clients), public)}
        upload = step.upload()
        if protection.seals:
            who, samples = plan.clients, plan.num_examples
            with torch.no_grad():
                upload |= protection.seal_(step.weights, params, who, server_round, samples, told)
        return Chunk(
            client_index=plan.clients,
            arrays=step.result(),
            client_arrays=upload,
            metrics=metrics,
        )

    def _step_maker(self, plan: Plan, params: Params) -> tuple[StepFactory, Params]:
        """Return how steps are taken, and those of `params` of which each client has a copy."""
        if self.stacked is not None and params:
            found = chain_step(self.stacked, plan, params, self._room)
            if found is not None:
                return found
        return self.make_step, params

    def _gather(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the samples of one step, `[A, B, ...]`, in memory that the next step reuses."""
        rows = index.flatten()
        out = self._block(" batch", x[0], len(rows))
        batch: Tensor = torch.index_select(x, 0, rows, out=out)
        return batch.view(*index.shape, *x.shape[1:])

    def _full_gradients(
        self, clients: np.ndarray, server_round: int, make_step: StepFactory
    ) -> Params:
        """Return each client's gradient over all of its samples, at the model as received."""
        step = make_step(gradient={})
        plan = make_plan(self.runtime, clients, server_round, sweep=True)
        # A step wants those still working in the first rows; these are in the order of theirs.
        order = torch.from_numpy(plan.order).to(plan.x.device)
        back = torch.argsort(order)
        step.client_arrays = {name: rows[order] for name, rows in step.client_arrays.items()}
        step.steps_K = step.steps_K[order]
        total = {name: torch.zeros_like(w) for name, w in step.trained.items()}
        share_SK = plan.lengths / np.maximum(plan.num_examples, 1)
        for s, lengths in enumerate(plan.lengths):
            active, width = int((lengths > 0).sum()), int(lengths.max())
            index = torch.from_numpy(plan.rows[s, :active, :width]).to(plan.x.device)
            share_A = torch.from_numpy(share_SK[s, :active]).to(plan.x.device, self._precision)
            into = {name: rows[:active] for name, rows in total.items()}
            step.add_gradient(into, plan.x[index], plan.y[index], lengths[:active], share_A)
        return {name: rows[back] for name, rows in total.items()}

    def _own(self, client_arrays: Params | PayloadOf, plan: Plan) -> Params:
        """Return what was sent to each client alone, in the plan's order, on the device."""
        device = plan.x.device
        if not callable(client_arrays):
            order = torch.from_numpy(plan.order).to(device)
            return {name: rows.to(device)[order] for name, rows in client_arrays.items()}
        own: Params = {}
        count, start, step = len(plan.clients), 0, 1
        while start < count:
            rows_of = client_arrays(plan.clients[start : start + step])
            for name, rows in rows_of.items():
                own[name] = self._block(f"own {name}", rows[0], count).to(device)
                own[name][start : start + len(rows)].copy_(rows)
            start += step
            step = max(1, PART_BYTES // max(1, sum(r[0].nbytes for r in rows_of.values())))
        return own

    def _copies(self, params: Params, count: int) -> Params:
        copies = {name: self._block(name, tensor, count) for name, tensor in params.items()}
        for name, tensor in params.items():
            copies[name].copy_(tensor.expand(count, *tensor.shape))
        return copies

    def _rooms(self, own: Params) -> Params:
        """Return room for the weights of clients that are sent models of their own, to `begin`."""
        names = self.runtime.dtypes
        return {name: self._block(name, own[name][0], len(own[name])) for name in names}

    def _block(self, name: str, like: Tensor, count: int) -> Tensor:
        """Return memory for `count` tensors, the same in each round."""
        return self._room(name, (count, *like.shape), like)

    def _room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory of a shape, the same in each round."""
        size, held = math.prod(shape), self._memory.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            held = self._memory[name] = like.new_empty(size)
        return held[:size].view(shape)


@torch.no_grad()
def evaluate_clients(runtime: ClientRuntime, clients: np.ndarray, params: Params) -> Chunk:
    """Score one shared model on each client's held-out samples, in a few large batches."""
    pool = runtime.pool(clients.tolist(), held_out=True)
    counts = np.array([len(rows) for rows in pool.rows], np.int64)
    owner = torch.from_numpy(np.repeat(np.arange(len(clients)), counts)).to(pool.x.device)
    x, y = pool.take(np.concatenate(pool.rows))
    runtime.model.eval()
    sums: dict[str, torch.Tensor] = {}
    dataset = runtime.dataset
    classes = dataset.num_outputs if dataset.weighted_f1 else 0
    counts_KCC = torch.zeros(len(clients), classes, classes, dtype=torch.int64, device=x.device)
    parts = (torch.split(t, 4096) for t in (x, y, owner))
    for x_part, y_part, who in zip(*parts, strict=True):
        outputs = runtime.apply(params, x_part)
        for name, values in sample_scores(dataset.task, outputs, y_part).items():
            total = sums.setdefault(name, values.new_zeros(len(clients), dtype=torch.float64))
            total.index_add_(0, who, values.double())
        if dataset.weighted_f1:
            counts_KCC += confusion(who, y_part, outputs.argmax(-1), len(clients), classes)
    means = {name: total.cpu().numpy() / np.maximum(counts, 1) for name, total in sums.items()}
    if dataset.weighted_f1:
        means[WEIGHTED_F1] = weighted_f1(counts_KCC).cpu().numpy()
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
    dataset = runtime.dataset
    classes = dataset.num_outputs if dataset.weighted_f1 else 0
    counts_KCC = torch.zeros(len(some), classes, classes, dtype=torch.int64, device=pool.x.device)
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
            scores = sample_scores(dataset.task, outputs.flatten(0, 1), y.flatten(0, 1))
            if dataset.weighted_f1:
                owner = torch.arange(len(some), device=x.device).unsqueeze(1).expand_as(true_KB)
                triples = (owner[true_KB], y[true_KB], outputs.argmax(-1)[true_KB])
                counts_KCC += confusion(*triples, len(some), classes)
            for name, values in scores.items():
                kept_KB = torch.where(true_KB, values.view(true_KB.shape).double(), 0)
                total = sums.setdefault(name, np.zeros(len(clients)))
                total[some] += kept_KB.sum(1).cpu().numpy()
    means = {name: total / np.maximum(counts, 1) for name, total in sums.items()}
    if dataset.weighted_f1:
        means[WEIGHTED_F1] = np.zeros(len(clients))
        means[WEIGHTED_F1][some] = weighted_f1(counts_KCC).cpu().numpy()
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

    models: Params = {}
    for _, index in length_groups(lengths, device):
        group = range(len(clients))[index] if isinstance(index, slice) else index.tolist()
        x, y = (torch.stack([getattr(batches[k], name) for k in group]) for name in ("x", "y"))
        arrays = {name: rows.to(device)[index] for name, rows in client_arrays.items()}
        for name, rows in torch.vmap(one)(x, y, arrays).items():
            if name not in models:
                models[name] = rows.new_empty((len(clients), *rows.shape[1:]))
            models[name][index] = rows
    return models
