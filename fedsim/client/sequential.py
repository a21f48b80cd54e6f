"""One client's local work, one step after another: the reference that every engine must match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.client.half import Batch
from fedsim.client.objective import mean_scores, sample_scores
from fedsim.client.runtime import ClientRuntime
from fedsim.models.dropout import install
from fedsim.records import NUM_EXAMPLES, Params

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
) -> LocalResult:
    """Run one client's local steps from `params`, which is not modified."""
    pool = runtime.pool([client])
    rows = pool.rows[0]
    batches = runtime.work.batches(runtime.seed, server_round, client, len(rows))
    context = runtime.context(
        params=params, client_arrays=client_arrays, server_round=server_round, steps=len(batches)
    )
    local = {name: tensor.clone() for name, tensor in params.items()}
    trained = {name: local[name] for name in runtime.trainable}
    rest = {name: local[name] for name in local if name not in trained}
    dropout = runtime.dropout(server_round, [client])
    runtime.model.train()

    def loss(leaves: Params, batch: Batch) -> Tensor:
        return runtime.half.loss({**rest, **leaves}, batch, context)

    velocity: Params = {}
    total, seen = 0.0, 0
    for positions in batches:
        x, y = pool.take(rows[positions])
        if dropout:
            install(runtime.model, dropout, [len(y)])
        grads, value = runtime.estimator.estimate(loss, trained, Batch(x=x, y=y))
        with torch.no_grad():
            grads = runtime.half.correct(grads, trained, context)
            runtime.work.step_(trained, grads, velocity, context.lr)
        total, seen = total + float(value) * len(y), seen + len(y)
    with torch.no_grad():
        upload = runtime.half.upload(local, context)
    metrics = {NUM_EXAMPLES: float(len(rows)), TRAIN_LOSS: total / max(seen, 1)}
    return LocalResult(local, upload, metrics)


def evaluate_client(runtime: ClientRuntime, *, client: int, params: Params) -> dict[str, float]:
    """Return one client's scores on its held-out samples, under `params`."""
    pool = runtime.pool([client], held_out=True)
    x, y = pool.take(pool.rows[0])
    scores = evaluate(runtime, params, x, y)
    return {NUM_EXAMPLES: float(len(y)), **scores}


@torch.no_grad()
def evaluate(
    runtime: ClientRuntime, params: Params, x: Tensor, y: Tensor, batch_size: int = 4096
) -> dict[str, float]:
    """Return the mean scores of `params` on samples `x [B, ...]`, `y [B, ...]`; none if B = 0."""
    if not len(y):
        return {}
    runtime.model.eval()
    parts = [
        sample_scores(runtime.dataset.task, runtime.apply(params, x_part), y_part)
        for x_part, y_part in zip(
            torch.split(x, batch_size), torch.split(y, batch_size), strict=True
        )
    ]
    return mean_scores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
