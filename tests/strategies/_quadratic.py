"""Clients whose loss is (w - b_k)^2 / 2 exactly, in float64, through the real engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from fedsim.client import LocalSGD
from fedsim.client.gradient import Plain
from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import Dataset
from fedsim.engines.base import EnginePart
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.partition.base import ArrayPartition
from fedsim.strategy import FedsimStrategy
from tests.helpers import run
from tests.strategies._toy import Masks

ENGINES: dict[str, EnginePart] = {
    "in_process": InProcess(),
    "wire": InProcess(wire_check=True),
    "vmap": Cohort(plan="vmap"),
}


def scalar() -> nn.Module:
    """One weight w, starting at 0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def quadratics(
    strategy: FedsimStrategy,
    centres: Sequence[float],
    *,
    lr: float = 0.1,
    steps: int = 2,
    model: Callable[[], nn.Module] = scalar,
    **work: float,
) -> ClientRuntime:
    """Return a federation of clients with one sample to train on and one held out, both b_k.

    With inputs of 1 / sqrt(2) and targets of b / sqrt(2), the squared error is (w - b)^2 / 2.
    """
    y = torch.tensor(centres, dtype=torch.float64).repeat_interleave(2)[:, None] / math.sqrt(2)
    x = torch.full_like(y, 1 / math.sqrt(2))
    dataset = Dataset(
        name="quadratics", task="regression", train_x=x, train_y=y, test_x=x, test_y=y,
        num_outputs=1,
    )  # fmt: skip
    return ClientRuntime(
        dataset=dataset,
        partition=ArrayPartition(np.arange(len(y)), np.arange(0, len(y) + 1, 2)),
        holdout=0.5,
        model=model().double(),
        work=LocalSGD(lr=lr, batch_size=1, epochs=None, steps=steps, **work),
        half=strategy.client_half,
        estimator=Plain(),
        seed=0,
    )


def trace(
    strategy: FedsimStrategy,
    centres: Sequence[float],
    masks: Sequence[Sequence[int]],
    engine: EnginePart,
    **settings: object,
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Run one round per mask; return the last model and each client's held-out loss, `[T, N]`."""
    runtime = quadratics(strategy, centres, **settings)  # type: ignore[arg-type]
    schedule = Masks(np.array(masks))
    params, reports = run(
        runtime, engine, strategy=strategy, rounds=len(masks), schedule=schedule, evaluate=True
    )
    return params, np.array([report.per_client["loss"] for report in reports])
