"""What a run computes and holds: floating-point operations, and the memory of a chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.engines.cohort import bytes_per_client
from fedsim.errors import ConfigError
from fedsim.participation.base import Schedule
from fedsim.partition.base import train_sizes
from fedsim.protection.base import Protection
from fedsim.records import Params, Scalar

_ROUNDS, _CLIENTS = 8, 32
"""How many rounds, and clients of each, are asked how much they would compute."""
_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations per sample, of matrix products and convolutions (a multiply-add is two).

    Attributes:
        forward: To score one.
        training: To score it and to differentiate the loss.
    """

    forward: float
    training: float


def flops(runtime: ClientRuntime) -> Flops:
    """Count the operations of one pass of the model, by running one."""
    model = runtime.model
    x = runtime.dataset.train_x[:_BATCH]
    model.eval()
    forward, both = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward, torch.no_grad():
        model(x)
    with both, torch.enable_grad():
        outputs = model(x)
        if outputs.requires_grad:
            outputs.float().sum().backward()
    model.zero_grad(set_to_none=True)
    count = max(1, len(x))
    return Flops(forward=forward.get_total_flops() / count, training=both.get_total_flops() / count)


@dataclass(frozen=True, kw_only=True)
class LocalEffort:
    """Operations of one client's local work, whatever its half does.

    Attributes:
        per_visit: For each sample of each local step.
        per_sample: For each sample that it holds, once, beside the steps.
    """

    per_visit: float
    per_sample: float

    def of(self, visits_K: np.ndarray, samples_K: np.ndarray) -> np.ndarray:
        """Return the operations of clients of so many visits and samples, float64 `[K]`."""
        effort_K: np.ndarray = self.per_visit * visits_K + self.per_sample * samples_K
        return effort_K


def local_effort(
    runtime: ClientRuntime,
    *,
    client: int,
    server_round: int,
    params: Params,
    client_arrays: Params,
    told: Mapping[str, Scalar],
) -> LocalEffort:
    """Count the operations of a client's local work, by having it take one step, and then two.

    What grows with the steps is of the visits; what does not, of the samples. Values do not matter,
    only shapes: `params` and `client_arrays` may be anything finite. Nothing is sealed, and nothing
    of it is kept.
    """
    n = len(runtime.samples(client))
    counted = []
    for steps in (1, 2):
        work = replace(runtime.work, epochs=None, steps=steps)
        few = replace(runtime, work=work, protection=Protection(), train_targets=None)
        counted.append(
            _operations(
                lambda few=few: train_client(  # type: ignore[misc]
                    few,
                    client=client,
                    server_round=server_round,
                    params=params,
                    client_arrays=client_arrays,
                    told=told,
                )
            )
        )
    one, two = counted
    visits = min(runtime.work.batch_size, n)
    return LocalEffort(per_visit=(two - one) / visits, per_sample=(2 * one - two) / n)


def evaluation_effort(
    runtime: ClientRuntime, *, client: int, server_round: int, params: Params, client_arrays: Params
) -> float:
    """Count the operations of a client's evaluation, by having it evaluate."""
    return _operations(
        lambda: evaluate_client(
            runtime,
            client=client,
            server_round=server_round,
            params=params,
            client_arrays=client_arrays,
        )
    )


def _operations(work: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


def samples_per_client(runtime: ClientRuntime, schedule: Schedule, rounds: np.ndarray) -> float:
    """Return how many samples a participant goes through in a round, with repeats; the mean.

    Draws the batches of some participants of some rounds, as the run would.
    """
    counts: list[int] = []
    for r in rounds[np.linspace(0, len(rounds) - 1, min(len(rounds), _ROUNDS)).astype(int)]:
        clients = schedule.select(int(r))
        chosen = clients[np.linspace(0, len(clients) - 1, min(len(clients), _CLIENTS)).astype(int)]
        sizes = train_sizes(runtime.partition.sizes(chosen), runtime.holdout)
        for client, size in zip(chosen, sizes, strict=True):
            batches = runtime.batches(int(r), int(client), int(size))
            counts.append(sum(len(batch) for batch in batches))
    return float(np.mean(counts)) if counts else 0.0


def chunk_bytes(runtime: ClientRuntime, chunk: int) -> int:
    """Return what `chunk` clients at once hold: weights, and outputs and inputs' gradients.

    Each has its weights, its layers' outputs on a batch, and as much again while it goes back.
    """
    return 2 * chunk * bytes_per_client(runtime)


def check_memory(runtime: ClientRuntime, chunk: int) -> int:
    """Return the bytes of a chunk.

    Raises:
        ConfigError: They are more than there is; says how many clients would fit.
    """
    needed, free = chunk_bytes(runtime, chunk), free_bytes(runtime.dataset.train_x.device)
    if free is not None and needed > free:
        fits = free // chunk_bytes(runtime, 1)
        hint = f"engine.chunk={fits} fits" if fits else "not even one fits; use a smaller model"
        raise ConfigError(
            f"engine.chunk: {chunk:,} clients at once need about {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free; {hint}"
        )
    return needed


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free for a run on a device; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
