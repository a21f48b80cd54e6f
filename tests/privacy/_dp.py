"""Small federations under a privacy mechanism, put together by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.half import Batch
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import PrivateStep
from fedsim.data.dataset import Dataset
from fedsim.layers.model import StackedModel
from fedsim.models.base import ModelPart
from fedsim.models.structure import state_of
from fedsim.protection import PrivacyPart, Protection, Setting
from fedsim.records import Params
from privacy.dp_sgd import DPSGD
from strategies.fedavg import FedAvg
from tests.helpers import RAGGED, Everyone, make_model, shares

Model = ModelPart | Callable[[], nn.Module]


def dp_sgd(**values: object) -> DPSGD:
    """DP-SGD without noise, unless said otherwise: nothing is solved for."""
    return DPSGD(**{"noise_multiplier": 0.0, "sample_rate": 0.5, "clip_norm": 0.3, **values})


def setting(dataset: Dataset, work: LocalSGD, **values: object) -> Setting:
    count = int(values.pop("num_clients", len(RAGGED)))
    defaults = {"schedule": Everyone(count), "strategy": FedAvg(), "seed": 0, "rounds": 2}
    values = {"update_size": 10, **values}
    return Setting(dataset=dataset, work=work, num_clients=count, **{**defaults, **values})


def private_runtime(
    dataset: Dataset,
    model: Model,
    part: PrivacyPart,
    *,
    sizes: Sequence[int] = RAGGED,
    holdout: float = 0.0,
    half: ClientHalf | None = None,
    work: LocalSGD | None = None,
    **values: object,
) -> ClientRuntime:
    work = work or LocalSGD(lr=0.1, batch_size=4, epochs=1)
    built = make_model(model, dataset)
    size = sum(t.numel() for t in state_of(built).values() if t.is_floating_point())
    values = {"num_clients": len(sizes), "update_size": size, **values}
    bound: Protection = part.bind(setting(dataset, work, **values))
    return ClientRuntime(
        dataset=dataset,
        partition=shares(dataset, sizes),
        holdout=holdout,
        model=built,
        work=work,
        half=half or ClientHalf(),
        estimator=bound.estimator,
        protection=bound,
        hides_sizes=part.hides_sizes,
        seed=0,
    )


def start_of(runtime: ClientRuntime) -> Params:
    """Parameters at which no gradient is zero by construction."""
    rng = torch.Generator().manual_seed(3)
    params = runtime.initial_params()
    for name in runtime.trainable:
        noise = torch.randn(params[name].shape, generator=rng, dtype=torch.float64)
        params[name] = params[name] + 0.1 * noise.to(params[name].dtype)
    return params


def alone(
    runtime: ClientRuntime, batches: Sequence[Batch], *, server_round: int = 1, steps: int = 1
) -> list[Params]:
    """The gradients of some clients, one client at a time."""
    params, found = start_of(runtime), []
    runtime.model.train()
    for client, batch in enumerate(batches):
        context = runtime.context(
            params=params, client_arrays={}, server_round=server_round, steps=1
        )
        dropout = runtime.dropout(server_round, [client])
        gradient = runtime.estimator.begin(runtime, server_round=server_round, client=client)
        for _ in range(steps):
            grads, _ = gradient(params, batch, context, dropout)
        found.append(grads)
    return found


def at_once(
    runtime: ClientRuntime, batches: Sequence[Batch], *, server_round: int = 1, steps: int = 1
) -> list[Params]:
    """The same by the cohort's step, padded to the longest batch with a sample of another."""
    params = start_of(runtime)
    count, width = len(batches), max(1, *(len(batch.y) for batch in batches))
    data = runtime.dataset
    x = data.train_x[:1].expand(count, width, *data.train_x.shape[1:]).clone()
    y = data.train_y[:1].expand(count, width, *data.train_y.shape[1:]).clone()
    for k, batch in enumerate(batches):
        x[k, : len(batch.y)], y[k, : len(batch.y)] = batch.x, batch.y
    clients = np.arange(count)
    weights = {n: t.expand(count, *t.shape).clone() for n, t in params.items()}
    step = PrivateStep(
        StackedModel(runtime.model),
        runtime,
        weights=weights,
        start=params,
        client_arrays={},
        clients=clients,
        steps_K=torch.ones(count, dtype=torch.float64),
        server_round=server_round,
        gradient={},
    )
    step.direct = False  # into a buffer, in which the gradient can be seen
    step.grads = {name: torch.empty_like(w) for name, w in step.trained.items()}
    lengths = np.array([len(batch.y) for batch in batches])
    for _ in range(steps):
        for name, tensor in params.items():
            weights[name].copy_(tensor.expand_as(weights[name]))
        step.run(x, y, lengths, runtime.dropout(server_round, clients.tolist()))
    return [{name: rows[k].clone() for name, rows in step.grads.items()} for k in clients]


def poisson_batches(runtime: ClientRuntime, server_round: int = 1) -> list[Batch]:
    """The first batch of each client; some are empty, and no two need be of one length."""
    found = []
    for client in range(runtime.partition.num_clients):
        rows = runtime.samples(client)
        positions = runtime.batches(server_round, client, len(rows))[0]
        index = torch.from_numpy(rows[positions])
        found.append(Batch(x=runtime.dataset.train_x[index], y=runtime.dataset.train_y[index]))
    return found


def vector(grads: Params) -> Tensor:
    return torch.cat([grads[name].flatten().double() for name in sorted(grads)])


def gap(a: Params, b: Params) -> float:
    """Norm of the difference over the norm of `b`; the norm itself where that is 0."""
    norm = float(vector(b).norm())
    return float((vector(a) - vector(b)).norm()) / (norm or 1.0)


def within_four(value: float, mean: float, deviation: float) -> bool:
    """Whether a statistic is within 4.417 standard deviations: 1e-5 false alarms."""
    return math.isfinite(value) and abs(value - mean) <= 4.417 * deviation
