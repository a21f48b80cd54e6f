"""Clients of quadratic losses in several dimensions, through the real engines, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedsim.admission import Admission
from fedsim.client import LocalSGD
from fedsim.client.runtime import ClientRuntime
from fedsim.compression import Codec, Compressor
from fedsim.data.dataset import Dataset
from fedsim.engines.base import EnginePart, LocalGrid
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.partition.base import ArrayPartition
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation
from strategies.fedavg import FedAvg
from tests.helpers import Everyone, make_runtime

ENGINES: dict[str, EnginePart] = {
    "in_process": InProcess(),
    "wire": InProcess(wire_check=True),
    "rules": Cohort(chunk=2, plan="rules"),
}


def quadratics(
    samples: Sequence[Sequence[Sequence[float]]],
    targets: Sequence[Sequence[float]],
    start: Sequence[float],
    codec: Codec | None,
    **work: object,
) -> ClientRuntime:
    """Make clients of loss mean_j (s_kj · x − t_kj)², who take one step with all samples."""
    d, count = len(start), len(samples[0])
    x = torch.tensor(samples, dtype=torch.float64).reshape(-1, d)
    y = torch.tensor(targets, dtype=torch.float64).reshape(-1, 1)
    dataset = Dataset(
        name="quadratics", task="regression", train_x=x, train_y=y, test_x=x, test_y=y,
        num_outputs=1,
    )  # fmt: skip

    def model() -> nn.Module:
        linear = nn.Linear(d, 1, bias=False)
        linear.weight.data = torch.tensor([start], dtype=torch.float64)
        return linear

    runtime = make_runtime(
        dataset,
        model,
        partition=ArrayPartition(np.arange(len(y)), np.arange(0, len(y) + 1, count)),
        work=LocalSGD(batch_size=count, epochs=None, steps=1, **work),  # type: ignore[arg-type]
    )
    compressor = None if codec is None else Compressor(codec=codec, seed=0)
    return replace(runtime, compressor=compressor)


def trace(
    runtime: ClientRuntime, engine: EnginePart, rounds: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Run FedAvg; yield the model, and the mean of what clients remember, after each round."""
    count = runtime.partition.num_clients
    strategy, schedule, grid = FedAvg(), Everyone(count), engine.grid(runtime)
    strategy.federation = Federation(num_clients=count, seed=0, schedule=schedule)
    loop = RoundLoop(
        strategy=strategy,
        grid=grid,
        schedule=schedule,
        admission=Admission(on_failure="stop"),
        evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0,
        last_round=rounds,
        compressor=runtime.compressor,
    )
    assert isinstance(grid, LocalGrid)
    for params, _ in loop.run(runtime.initial_params()):
        (x,) = params["weight"].numpy().copy()
        memory = grid.recall(np.arange(count)).get("residual")
        yield x, np.zeros_like(x) if memory is None else memory.numpy().mean(0)
