"""One client's local work, one step after another: the reference that every engine must match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import Batch, ClientContext
from fedsim.client.objective import (
    WEIGHTED_F1,
    confusion,
    mean_scores,
    sample_scores,
    score_names,
    weighted_f1,
)
from fedsim.client.runtime import ClientRuntime, Pool
from fedsim.client.whole import run_whole, score_whole
from fedsim.models.dropout import install
from fedsim.records import EVALUATE, NUM_EXAMPLES, RECEIVED, Params, Scalar

NOTHING: Mapping[str, Scalar] = MappingProxyType({})

TRAIN_LOSS = "train-loss"
"""Mean of the batch losses over a round's local steps, each weighed by its number of samples."""


@dataclass(frozen=True)
class LocalResult:
    """What one client sends back: its model, whatever else its half uploads, its metrics."""

    params: Params
    upload: Params
    metrics: dict[str, float]


def train_client(
    runtime: ClientRuntime,
    *,
    client: int,
    server_round: int,
    params: Params,
    client_arrays: Params,
    told: Mapping[str, Scalar] = NOTHING,
) -> LocalResult:
    """Run one client's local steps from `params`, which is not modified.

    `told` is the configuration that came with the model. If it says so, the client scores the model
    as it received it first, on its held-out samples.
    """
    scores: dict[str, float] = {}
    if told.get(EVALUATE):
        scores = received_scores(
            runtime,
            client=client,
            server_round=server_round,
            params=params,
            client_arrays=client_arrays,
        )
    half = runtime.half
    if half.overrides("run"):
        chunk = run_whole(
            runtime,
            clients=np.array([client]),
            server_round=server_round,
            params=params,
            client_arrays={name: tensor.unsqueeze(0) for name, tensor in client_arrays.items()},
            told=told,
        )
        arrays, sent = (
            {n: t[0] for n, t in c.items()} for c in (chunk.arrays, chunk.client_arrays)
        )
        figures = {name: float(values[0]) for name, values in chunk.metrics.items()}
        return LocalResult(arrays, sent, {**figures, **scores})
    pool = runtime.pool([client])
    rows = pool.rows[0]
    batches = runtime.batches(server_round, client, len(rows))
    context = runtime.context(
        params=params,
        client_arrays={name: tensor.clone() for name, tensor in client_arrays.items()},
        server_round=server_round,
        steps=len(batches),
    )
    with torch.no_grad():
        began = half.begin(params, context)
    local = {name: began[name].clone() for name in (params or runtime.dtypes)}
    trained = {name: local[name] for name in runtime.trainable}
    dropout = runtime.dropout(server_round, [client])
    if half.full_gradient:
        context = replace(context, gradient=_full_gradient(runtime, local, context, pool))
    gradient = runtime.estimator.begin(runtime, server_round=server_round, client=client)
    runtime.model.train()
    velocity: Params = {}
    total, seen = 0.0, 0
    for step, positions in enumerate(batches):
        x, y = pool.take(rows[positions])
        context = replace(context, step=step)
        if half.overrides("gradient"):
            if dropout:
                install(runtime.model, dropout, [len(y)])
            grads, value, arrays = half.gradient(local, Batch(x=x, y=y), context)
            context = replace(context, arrays=arrays)
        else:
            grads, value = gradient(local, Batch(x=x, y=y), context, dropout)
        with torch.no_grad():
            grads = half.correct(grads, trained, context)
            frozen = half.frozen(context)
            moving = {name: grad for name, grad in grads.items() if not frozen.get(name, False)}
            runtime.work.step_(trained, moving, velocity, context.lr)
        total, seen = total + float(value) * len(y), seen + len(y)
    with torch.no_grad():
        upload = half.upload(local, context)
    protection, public = runtime.protection, runtime.protection.public_examples
    if protection.seals:
        stacked = {name: tensor.unsqueeze(0) for name, tensor in local.items()}
        who, samples = np.array([client]), np.array([len(rows)])
        with torch.no_grad():
            sealed = protection.seal_(stacked, params, who, server_round, samples, told)
        upload |= {name: row[0] for name, row in sealed.items()}
    metrics = {NUM_EXAMPLES: float(len(rows)), TRAIN_LOSS: total / max(seen, 1)}
    if public is not None:
        metrics = {NUM_EXAMPLES: public}
    return LocalResult(local, upload, {**metrics, **scores})


def _full_gradient(
    runtime: ClientRuntime, params: Params, context: ClientContext, pool: Pool
) -> Params:
    """Return the gradient of the mean loss over all of a client's samples, as for evaluation.

    That is, without dropout: the mean of the batches' gradients, each weighed by its length.
    """
    runtime.model.eval()
    rows = pool.rows[0]
    total = {name: torch.zeros_like(params[name]) for name in runtime.trainable}
    for positions in runtime.work.sweep(len(rows)):
        x, y = pool.take(rows[positions])
        grads, _ = runtime.half.loss_gradient(params, Batch(x=x, y=y), context)
        for name, grad in grads.items():
            total[name].add_(grad, alpha=len(y) / len(rows))
    return total


def evaluate_client(
    runtime: ClientRuntime,
    *,
    client: int,
    server_round: int,
    params: Params,
    client_arrays: Params,
) -> dict[str, float]:
    """Return one client's scores on its held-out samples, under its view of `params`."""
    if runtime.half.overrides("score"):
        columns = score_whole(
            runtime,
            clients=np.array([client]),
            server_round=server_round,
            params=params,
            client_arrays={name: tensor.unsqueeze(0) for name, tensor in client_arrays.items()},
        )
        return {name: float(column[0]) for name, column in columns.items()}
    pool = runtime.pool([client], held_out=True)
    x, y = pool.take(pool.rows[0])
    if runtime.half.personal and len(y):
        context = runtime.context(
            params=params, client_arrays=client_arrays, server_round=server_round, steps=0
        )
        batch = first_batch(runtime, client, server_round)
        runtime.model.eval()
        params = runtime.half.evaluated(params, batch, context)
    scores = evaluate(runtime, params, x, y)
    return {NUM_EXAMPLES: float(len(y)), **scores}


def received_scores(
    runtime: ClientRuntime,
    *,
    client: int,
    server_round: int,
    params: Params,
    client_arrays: Params,
) -> dict[str, float]:
    """Return the scores of `evaluate_client` as they go into a training reply.

    All names are there for a client without held-out samples, too: what a reply holds must not
    depend on the client.
    """
    scores = evaluate_client(
        runtime,
        client=client,
        server_round=server_round,
        params=params,
        client_arrays=client_arrays,
    )
    names = (NUM_EXAMPLES, *score_names(runtime.dataset.task, runtime.dataset.weighted_f1))
    return {RECEIVED + name: scores.get(name, 0.0) for name in names}


def first_batch(runtime: ClientRuntime, client: int, server_round: int) -> Batch:
    """Return the batch of training samples that a client would begin a round with."""
    pool = runtime.pool([client])
    rows = pool.rows[0]
    batches = runtime.batches(server_round, client, len(rows))
    x, y = pool.take(rows[batches[0]])
    return Batch(x=x, y=y)


@torch.no_grad()
def evaluate(
    runtime: ClientRuntime, params: Params, x: Tensor, y: Tensor, batch_size: int = 4096
) -> dict[str, float]:
    """Return the mean scores of `params` on samples `x [B, ...]`, `y [B, ...]`; none if B = 0."""
    if not len(y):
        return {}
    runtime.model.eval()
    dataset, parts, guesses = runtime.dataset, [], []
    for x_part, y_part in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        outputs = runtime.apply(params, x_part)
        parts.append(sample_scores(dataset.task, outputs, y_part))
        guesses.append(outputs.argmax(-1) if dataset.weighted_f1 else y_part[:0])
    means = mean_scores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    if dataset.weighted_f1:
        counts = confusion(torch.zeros_like(y), y, torch.cat(guesses), 1, dataset.num_outputs)
        means[WEIGHTED_F1] = float(weighted_f1(counts)[0])
    return means
