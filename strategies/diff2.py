"""DIFF2-GD (Murata and Suzuki, ICML 2023, arXiv:2302.03884, Algorithm 1), and DP-GD as T = 1.

    round r, a restart (every T rounds; the first):
        S_p = Σ_i clip(∇ℓ(x_r; z_i), C1)                                 v = (Σ_p S_p + noise) / N
    any other:
        c   = C2 · ‖x_r − x_{r−1}‖
        S_p = Σ_i clip(∇ℓ(x_r; z_i) − ∇ℓ(x_{r−1}; z_i), c)           v = v + (Σ_p S_p + noise) / N
    x_{r+1} = x_r − η v

clip(g, c) = g · min(1, c / ‖g‖) for each record i of client p, ‖·‖ over all tensors. The noise, and
what may be claimed, are those of `privacy=diff2`, which holds the proof; with `privacy=none` there
is no noise, and v is the exact gradient wherever nothing is clipped.

weights:  every record alike, N = Σ_p n_p; or, with `min_examples` m, every client alike:
          S_p is multiplied by min(1, m / n_p), and N = P m.

Membership. The recursion holds for the clients whose gradients v is made of. Where others are asked
than at the last restart, the round is a restart. Where others reply, what they sent is of no use:
the model stays, and the next round is a restart. Both cost what a restart costs. Participation that
draws its clients is refused.

Shapes: K clients, B records; `[B, ...]` one gradient per record. Buffers stay as they are.

Differs from the paper: sums are divided once by N, where the released code takes means of batch
means, in which the records of a short last batch weigh more than their clipping allows for.
The client sends S_p in place of a model, and the server sends x_{r−1} besides x_r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.client.half import ClientHalf
from fedsim.client.sequential import TRAIN_LOSS
from fedsim.client.whole import Cohort, Worked
from fedsim.errors import ConfigError, ResumeError
from fedsim.participation.sampling import Unsampled
from fedsim.parts import Range
from fedsim.records import Instructions, Params, Replies, moved, to_tensors
from fedsim.strategy import Round, State
from privacy.clipped_strategy import CLIP_NORM, CLIPPED, RESTART, ClippedSums

PREVIOUS, ESTIMATE = "previous/", "estimate/"


@dataclass(frozen=True)
class Differences(ClientHalf):
    """Sums of clipped gradients, or of clipped differences of gradients."""

    min_examples: int | None

    def run(self, cohort: Cohort) -> Worked:
        start, clip_norm = cohort.start, float(cohort.told[CLIP_NORM])
        before: Params = {}
        if not cohort.told[RESTART]:
            before = dict(start)
            for name in cohort.trainable:
                before[name] = cohort.arrays[PREVIOUS + name][0]  # the same for all
        count = len(cohort)
        device = next(iter(start.values())).device
        sums = {name: start[name].new_zeros(count, *start[name].shape) for name in cohort.trainable}
        loss_K, clipped_K = torch.zeros(2, count, dtype=torch.float64, device=device)
        for batch, owner_B in cohort.pieces():
            vectors, losses_B = cohort.gradients(start, batch)
            if before:
                others, _ = cohort.gradients(before, batch)
                vectors = {name: vector - others[name] for name, vector in vectors.items()}
            bounded, norms_B = clipped(vectors, clip_norm)
            for name, vector in bounded.items():
                sums[name].index_add_(0, owner_B, vector)
            loss_K.index_add_(0, owner_B, losses_B.double())
            clipped_K.index_add_(0, owner_B, (norms_B > clip_norm).double())
        counts_K = torch.from_numpy(cohort.counts).to(device, torch.float64)
        if self.min_examples is not None:
            share_K = (self.min_examples / counts_K.clamp(min=1)).clamp(max=1)
            for rows in sums.values():
                rows.mul_(share_K.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1)))
        rest = {
            name: tensor.expand(count, *tensor.shape)
            for name, tensor in start.items()
            if name not in sums
        }
        metrics = {TRAIN_LOSS: loss_K, CLIPPED: clipped_K}
        return Worked(
            arrays={name: sums[name] if name in sums else rest[name] for name in start},
            metrics={name: values / counts_K.clamp(min=1) for name, values in metrics.items()},
        )


def clipped(vectors: Mapping[str, Tensor], clip_norm: float) -> tuple[Params, Tensor]:
    """Return each record's vector times min(1, c / ‖g‖), and ‖g‖, float64 `[B]`.

    A vector that is not finite must not be told from others: it counts as zero.
    """
    norms_B = torch.stack(
        [
            torch.linalg.vector_norm(vector.flatten(1), dim=1, dtype=torch.float64)
            for vector in vectors.values()
        ]
    ).norm(dim=0)
    factor_B = torch.where(norms_B > clip_norm, clip_norm / norms_B, 1.0)
    factor_B = torch.where(torch.isfinite(norms_B), factor_B, 0.0)
    bounded: Params = {}
    for name, vector in vectors.items():
        column = factor_B.to(vector.dtype).view(-1, *[1] * (vector.dim() - 1))
        bounded[name] = torch.where(column > 0, vector * column, 0)
    return bounded, norms_B


@dataclass(kw_only=True)
class Recursion(ClippedSums):
    """The recursive estimate of the gradient, and one step on it.

    Attributes:
        restart: T, in rounds; 1 is DP-GD.
        clip_gradients: C1.
        clip_differences: C2, in multiples of ‖x_r − x_{r−1}‖: at or above the smoothness of single
            records' losses, or v lags behind.
        server_lr: η. The clients' learning rate, epochs and batches are not used.
        min_examples: m, public; null for records that all weigh alike.
    """

    restart: Annotated[int, Range(ge=1)] = 16
    clip_gradients: Annotated[float, Range(gt=0)] = 1.0
    clip_differences: Annotated[float, Range(gt=0)] = 3.0
    server_lr: Annotated[float, Range(gt=0)] = 0.1
    min_examples: Annotated[int, Range(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._forget()
        self._asked = np.arange(0)

    def _forget(self) -> None:
        """Leave the estimate: the next round is a restart."""
        self._estimate: Params = {}
        self._previous: Params = {}
        self._members = np.arange(0)
        self._since, self._total = 0, 0.0

    @property
    def client_half(self) -> ClientHalf:
        return Differences(self.min_examples)

    def client_payload(self, context: Round) -> Params:
        if self._since >= self.restart:
            return {}
        count = len(context.asked)
        return {
            PREVIOUS + name: tensor.expand(count, *tensor.shape)
            for name, tensor in self._previous.items()
        }

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Instructions:
        """Say whether the round is a restart, and what is clipped to."""
        self.restarting = not self._estimate or self._since >= self.restart
        if self.federation is not None:
            check_unsampled(self.federation.schedule.sampling())
            asked = self.federation.schedule.select(server_round)
            self.restarting |= len(asked) > 0 and not np.array_equal(asked, self._asked)
            if self.restarting and len(asked):
                self._asked = asked
        self._clip_norm = self.clip_gradients
        if not self.restarting:
            x = self.trained(to_tensors(arrays))
            moves = [(x[n].double() - old.double()).norm() for n, old in self._previous.items()]
            self._clip_norm = self.clip_differences * float(torch.stack(moves).norm())
        told = {RESTART: self.restarting, CLIP_NORM: self._clip_norm}
        return super().configure_train(server_round, arrays, ConfigRecord({**config, **told}), grid)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        trained = self.trained(context.params)
        sums = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in trained.items()}
        who: list[int] = []
        examples = 0.0
        for chunk in replies.chunks():
            who += chunk.client_index.tolist()
            examples += float(chunk.num_examples.sum())
            for name, total in sums.items():
                total += chunk.arrays[name].sum(0, dtype=torch.float64)
        if not len(context.asked):
            return context.params
        members = np.sort(np.array(who, np.int64))
        stays = self.restarting or np.array_equal(members, self._members)
        if not stays or len(members) < max(1, self.mechanism.min_clients if self.mechanism else 1):
            self._forget()
            return context.params
        if self.restarting:
            self._forget()
            self._members, self._total = members, self._denominator(members, examples)
            self._estimate = {name: torch.zeros_like(total) for name, total in sums.items()}
        if self.mechanism is not None:
            self.mechanism.add_noise_(sums, context.server_round, self._clip_norm)
        for name, total in sums.items():
            self._estimate[name] = self._estimate[name] + total / self._total
        self._previous = {name: x.clone() for name, x in trained.items()}
        self._since += 1
        return {**context.params, **moved(trained, self._estimate, -self.server_lr)}

    def _denominator(self, members: np.ndarray, examples: float) -> float:
        """Return N: of public numbers alone under a privacy mechanism."""
        if self.min_examples is not None:
            return float(self.min_examples * len(members))
        if self.mechanism is not None:
            examples = float(self.mechanism.sizes_N[members].sum())
        return max(examples, 1.0)

    def state_dict(self) -> State:
        state: State = {"since": self._since, "total": self._total}
        state |= {"members": self._members, "asked": self._asked}
        state |= {ESTIMATE + name: tensor for name, tensor in self._estimate.items()}
        return state | {PREVIOUS + name: tensor for name, tensor in self._previous.items()}

    def load_state_dict(self, state: State) -> None:
        names = {"since", "total", "members", "asked"}
        unknown = {key for key in state if not key.startswith((PREVIOUS, ESTIMATE))} - names
        if unknown or not names <= set(state):
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)}, which is not that of "
                "DIFF2; was the strategy changed?"
            )
        self._since, self._total = int(state["since"]), float(state["total"])
        self._members = np.asarray(state["members"], np.int64)
        self._asked = np.asarray(state["asked"], np.int64)
        for prefix, into in ((ESTIMATE, self._estimate), (PREVIOUS, self._previous)):
            into.clear()
            for key, value in state.items():
                if key.startswith(prefix):
                    into[key.removeprefix(prefix)] = torch.as_tensor(value)


@dataclass(kw_only=True)
class Diff2(Recursion):
    """Gradient descent on a recursive estimate of the gradient; see `Recursion` for the keys."""


def check_unsampled(sampling: object) -> None:
    """Check that nobody draws the clients of a round.

    Raises:
        ConfigError: Somebody does.
    """
    if not isinstance(sampling, Unsampled):
        raise ConfigError(
            f"participation: {sampling}, but DIFF2 adds differences of the same clients' gradients "
            "round after round, and would restart in every one; use participation=full"
        )
