"""Local SGD: how many steps a client takes, on which batches, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from fedsim.records import Params


@dataclass(frozen=True, kw_only=True)
class LocalSGD(Part):
    """Mini-batch SGD on one client, as the `client` group of a scenario names it.

    The step is PyTorch's: g ← ∇ + weight_decay·w; v ← momentum·v + g; w ← w − lr·v. The momentum
    buffer starts at zero in every round.

    Attributes:
        lr: Learning rate γ of round 1 (after warm-up).
        batch_size: Samples per step; a client with fewer takes all of them in each step.
        epochs: Passes over the client's samples per round; the last batch of a pass may be short.
        steps: Steps per round instead, from an endless stream of reshuffled passes whose short
            last batches are skipped (FedAU's I). Exactly one of `epochs` and `steps` is set.
        momentum, weight_decay: As above.
        schedule: How lr changes over server rounds: `constant`; `step`: × `decay` every
            `decay_every` rounds; `cosine`: to zero over `decay_every` rounds.
        decay, decay_every: See `schedule`.
        warmup_rounds: Rounds 1..W train at lr·r/(W+1) first.
        warmup_from_zero: At lr·(r−1)/W instead: round 1 moves no weight (FedLD's code).

    Differs from FedAU's code: its clients keep one shuffled iterator across rounds; ours start a
    fresh keyed shuffle every round, so that a round is a pure function of its key.
    """

    lr: Annotated[float, Range(gt=0)] = 0.1
    batch_size: Annotated[int, Range(ge=1)] = 10
    epochs: Annotated[int, Range(ge=1)] | None = 1
    steps: Annotated[int, Range(ge=1)] | None = None
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Range(ge=0)] = 0.0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    decay: Annotated[float, Range(gt=0, le=1)] = 0.5
    decay_every: Annotated[int, Range(ge=1)] = 100
    warmup_rounds: Annotated[int, Range(ge=0)] = 0
    warmup_from_zero: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError(
                f"epochs={self.epochs} and steps={self.steps}: set exactly one of them, "
                "and the other to null"
            )

    def lr_at(self, server_round: int) -> float:
        """Return the learning rate of round 1, 2, ...

        Example:
            >>> LocalSGD(lr=1.0, schedule="step", decay=0.5, decay_every=10).lr_at(11)
            0.5
        """
        done = server_round - 1
        if self.warmup_from_zero and self.warmup_rounds:
            lr = self.lr * min(1.0, done / self.warmup_rounds)
        else:
            lr = self.lr * min(1.0, server_round / (self.warmup_rounds + 1))
        if self.schedule == "step":
            lr *= self.decay ** (done // self.decay_every)
        elif self.schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.decay_every)))
        return lr

    def num_steps(self, num_samples: int) -> int:
        """Return how many local steps a client with `num_samples` samples takes per round."""
        if num_samples == 0:
            return 0
        if self.steps is not None:
            return self.steps
        return math.ceil(num_samples / self.batch_size) * (self.epochs or 0)

    def visits(self, num_samples: np.ndarray) -> np.ndarray:
        """Return how many samples clients go through in a round, with repeats, of its shape."""
        each = num_samples if self.steps is None else np.minimum(self.batch_size, num_samples)
        visits: np.ndarray = each * (self.epochs or self.steps or 0)
        return visits

    def batches(self, seed: int, server_round: int, client: int, n: int) -> list[np.ndarray]:
        """Return the batches of one client's round: sample positions in [0, n), one array a step.

        Drawn from the key (seed, round, client, "batches"): the same in every engine.
        """
        rng = seeds.rng(seed, server_round, client, "batches")
        positions_SB, lengths_S = self.drawn(rng, n)
        pairs = zip(positions_SB, lengths_S.tolist(), strict=True)
        return [positions_B[:length] for positions_B, length in pairs]

    def drawn(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the batches of one client's round, as rows of a table.

        Returns:
            Sample positions in [0, n), `[S, B]`, short batches filled up with their first; and how
            long each batch is, `[S]`.
        """
        size = max(1, min(self.batch_size, n))
        if n == 0:
            return np.zeros((0, size), np.int64), np.zeros(0, np.int64)
        if self.steps is not None:
            stream = self._stream(rng, n, size)
            positions_SB = np.stack([next(stream) for _ in range(self.steps)])
            return positions_SB, np.full(self.steps, size)
        steps, short = math.ceil(n / size), n % size
        passes = []
        for _ in range(self.epochs or 0):
            order = rng.permutation(n)
            if short:
                order = np.concatenate([order, np.full(size - short, order[n - short])])
            passes.append(order.reshape(steps, size))
        positions_SB = passes[0] if len(passes) == 1 else np.concatenate(passes)
        return positions_SB, _lengths(steps, size, short, len(passes))

    def sweep(self, n: int) -> list[np.ndarray]:
        """Return batches that hold each of n samples once, in order."""
        return [np.arange(i, min(i + self.batch_size, n)) for i in range(0, n, self.batch_size)]

    @staticmethod
    def _stream(rng: np.random.Generator, n: int, size: int) -> Iterator[np.ndarray]:
        while True:
            order = rng.permutation(n)
            for start in range(0, n - size + 1, size):
                yield order[start : start + size]

    def step_(self, params: Params, grads: Params, velocity: Params, lr: float) -> None:
        """Take one SGD step in place; a name's `velocity` is absent before its first."""
        names = list(grads)
        if not names:  # everything is frozen
            return
        weights: list[Tensor] = [params[name] for name in names]
        updates: list[Tensor] = [grads[name] for name in names]
        if self.weight_decay:
            updates = list(torch._foreach_add(updates, weights, alpha=self.weight_decay))
        if self.momentum:
            for name, update in zip(names, updates, strict=True):
                if name not in velocity:
                    velocity[name] = torch.zeros_like(update)
            buffers = [velocity[name] for name in names]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, updates)
            updates = buffers
        torch._foreach_add_(weights, updates, alpha=-lr)


@lru_cache
def _lengths(steps: int, size: int, short: int, passes: int) -> np.ndarray:
    """Return the lengths of the batches of some passes, `[S]`; shared, not to be written to."""
    lengths_S = np.full(steps * passes, size)
    if short:
        lengths_S[steps - 1 :: steps] = short
    lengths_S.flags.writeable = False
    return lengths_S


def as_table(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return batches of any lengths as a table, `[S, B]`, and their lengths, `[S]`.

    Short ones are filled up with their first position, empty ones with 0.

    Example:
        >>> positions, lengths = as_table([np.array([4, 5]), np.array([], np.int64)])
        >>> positions.tolist(), lengths.tolist()
        ([[4, 5], [0, 0]], [2, 0])
    """
    lengths_S = np.array([len(batch) for batch in batches], np.int64)
    positions_SB = np.zeros((len(batches), max(1, lengths_S.max(initial=0))), np.int64)
    for row, batch in zip(positions_SB, batches, strict=True):
        row[:] = batch[0] if len(batch) else 0
        row[: len(batch)] = batch
    return positions_SB, lengths_S
