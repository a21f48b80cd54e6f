"""Real clients whose losses are (x - b)^2 / 2, under every engine; and a small real federation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from fedsim.admission import Admission
from fedsim.client import LocalSGD
from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import Dataset
from fedsim.engines.base import EnginePart
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.models.mlp import MLP
from fedsim.participation.base import WithSamples
from fedsim.partition.base import ArrayPartition
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation, FedsimStrategy
from tests.helpers import RAGGED, Some, classification, make_runtime
from tests.strategies._toy import Masks

ENGINES: dict[str, EnginePart] = {
    "in_process": InProcess(),
    "wire": InProcess(wire_check=True),
    "rules": Cohort(chunk=2, plan="rules"),
    "vmap": Cohort(chunk=2, plan="vmap"),
}
TWO_STEPS = LocalSGD(lr=0.1, batch_size=1, epochs=None, steps=2)
PARTLY = [[1, 0], [0, 1], [1, 0]]
"""Of two clients, 0, 1 and 0 take part."""


def at_zero() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def quadratics(
    strategy: FedsimStrategy,
    centres: Sequence[float],
    *,
    work: LocalSGD = TWO_STEPS,
    counts: Sequence[int] | None = None,
    curvatures: Sequence[float] | None = None,
) -> ClientRuntime:
    """Make clients of loss a_k (x - b_k)^2 / 2, with `counts[k]` samples each alike, in float64.

    The squared error of the model x·s for the target b·s, where s^2 = a/2.
    """
    counts = counts or [1] * len(centres)
    scale = torch.tensor(curvatures or [1.0] * len(centres), dtype=torch.float64).sqrt()
    scale = (scale / math.sqrt(2)).repeat_interleave(torch.tensor(counts))[:, None]
    b = torch.tensor(centres, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
    dataset = Dataset(
        name="quadratics",
        task="regression",
        train_x=scale,
        train_y=scale * b[:, None],
        test_x=scale[:1],
        test_y=scale[:1],
        num_outputs=1,
    )
    return make_runtime(
        dataset,
        at_zero,
        partition=ArrayPartition(np.arange(len(b)), np.cumsum([0, *counts])),
        half=strategy.client_half,
        work=work,
    )


def trace(
    strategy: FedsimStrategy,
    runtime: ClientRuntime,
    engine: EnginePart,
    masks: Sequence[Sequence[int]] | np.ndarray,
    note: Callable[[], float] | None = None,
) -> list[float]:
    """Run one round per mask; return x after each, or what `note` returns after each."""
    schedule = Masks(np.asarray(masks))
    strategy.federation = Federation(
        num_clients=runtime.partition.num_clients,
        seed=0,
        schedule=schedule,
        lr_at=runtime.work.lr_at,
        trainable=lambda: runtime.trainable,
    )
    loop = RoundLoop(
        strategy=strategy,
        grid=engine.grid(runtime),
        schedule=schedule,
        admission=Admission(),
        evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0,
        last_round=len(schedule.masks),
    )
    return [
        params["weight"].item() if note is None else note()
        for params, _ in loop.run(runtime.initial_params())
    ]


def ragged(
    strategy: FedsimStrategy, work: LocalSGD | None = None, dtype: torch.dtype = torch.float32
) -> ClientRuntime:
    """Make eight clients of very different sizes that train an MLP."""
    return make_runtime(
        classification(dtype=dtype), MLP(hidden=[8]), half=strategy.client_half, work=work
    )


FIVE_OF_EIGHT = WithSamples(Some(8, 5), lambda clients: np.array(RAGGED)[clients])
"""Five a round, or four: one of the eight has no samples."""
