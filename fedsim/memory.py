"""Which devices can hold a client's local work.

    bytes of client n = weights + gradients + momentum + 2 · min(batch_size, samples_n) · outputs

Weights are all of the model's tensors. Gradients, and momentum where there is one, are as large as
what is trained. Outputs are those of all layers for one sample (a flattened sample is one); they
count twice, since going back makes as much again. What an algorithm or a mechanism keeps beside
this (control variates, gradients of single samples) and the samples themselves are not counted.
Where a mechanism hides how many samples a client holds, its batches are taken to be full.

Shapes: N clients of the population, K of a round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.work import LocalSGD
from fedsim.errors import ConfigError
from fedsim.models.structure import state_of
from fedsim.participation.base import PartOf, Schedule

log = logging.getLogger(__name__)


@torch.no_grad()
def output_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes of all layers' outputs in one forward pass."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    layers = [m for m in model.modules() if not list(m.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        model.eval()
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(t.nbytes for t in outputs)


def work_bytes(model: nn.Module, x: Tensor, work: LocalSGD, samples_K: np.ndarray) -> np.ndarray:
    """Return the bytes that clients of so many training samples need, float64 `[K]`.

    Args:
        model: The architecture.
        x: At least one sample.
        work: Gives the batch size, and whether there is momentum.
        samples_K: How many samples clients train on.
    """
    weights = sum(t.nbytes for t in state_of(model).values())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    fixed = weights + trained * (2 if work.momentum else 1)
    each = output_bytes(model, lambda: model(x[:1]))
    bytes_K: np.ndarray = fixed + 2.0 * np.minimum(work.batch_size, samples_K) * each
    return bytes_K


def able_clients(memory_N: np.ndarray, need_N: np.ndarray) -> np.ndarray:
    """Return whose memory holds the work, bool `[N]`; says how many cannot.

    Raises:
        ConfigError: Nobody's does.
    """
    able_N: np.ndarray = need_N <= memory_N
    short = len(able_N) - int(able_N.sum())
    if short == len(able_N):
        closest = int(np.argmin(need_N / memory_N))
        raise ConfigError(
            f"memory: no client can hold its local work: that of client {closest}, which lacks "
            f"least, takes {need_N[closest]:,.0f} bytes of its {memory_N[closest]:,.0f}; use a "
            "smaller model or client.batch_size, or devices with more memory"
        )
    if short:
        log.warning(
            "devices: %d of %d clients cannot hold their local work, of up to %s bytes, in memory "
            "and never take part",
            *(short, len(able_N), f"{need_N[~able_N].max():,.0f}"),
        )
    return able_N


class Able(PartOf):
    """A schedule without the clients whose devices cannot hold the work.

    Which they are does not depend on anybody's data where a mechanism hides sizes, so that what
    the schedule says of its sampling holds of the others.

    Args:
        schedule: Who would take part.
        able_N: Who can, bool `[N]`.
    """

    def __init__(self, schedule: Schedule, able_N: np.ndarray) -> None:
        super().__init__(schedule)
        self.able_N = able_N

    def select(self, server_round: int) -> np.ndarray:
        clients = self.schedule.select(server_round)
        able: np.ndarray = clients[self.able_N[clients]]
        return able

    def rates(self) -> np.ndarray:
        return np.where(self.able_N, self.schedule.rates(), 0.0)
