"""BVR-L-SGD in private form, the other routine of DIFF2 (Murata and Suzuki, arXiv:2302.03884).

Rounds come in pairs. The first renews the estimate v of the gradient at x_r, as DIFF2 does, and
takes a step on it. In the second one client w, drawn uniformly without a look at the data, takes K
steps more, on an estimate that follows its own records:

    θ_0 = x_r,  θ_1 = x_r − η v,  u_0 = v                                         the server
    step k = 1..K, batch B_k of w's records, c = C3 · ‖θ_k − θ_{k−1}‖:            client w
        D_k     = Σ_{i in B_k} clip(∇ℓ(θ_k; z_i) − ∇ℓ(θ_{k−1}; z_i), c)
        u_k     = u_{k−1} + (D_k + noise_k) / |B_k|
        θ_{k+1} = θ_k − η u_k
    x_{r+1} = θ_{K+1}

The clients' records are cut into m batches each, once and for all, by their order; a client goes
through its batches in turn, and goes on where it stopped when it is drawn again. The noise is w's
own, and what may be claimed is proved in `privacy.diff2`; there is none with `privacy=none`.

All clients are asked in the second round as well, so that who takes part stays a matter of
`participation`; those that are not drawn answer with zeros, at once. A w that does not answer
leaves the model where the server's step has put it, and the next round is a restart.

Shapes: K clients of a cohort, B records; `[B, ...]` one gradient per record.

Differs from the paper: it says that the routine can be made private; how, we could not read.
C3, the noise, m, and that batches are fixed, are ours; the variance-reduced local steps and the
drawn client are those of BVR-L-SGD (Murata and Suzuki, ICML 2021, arXiv:2102.03198).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fedsim import seeds
from fedsim.client.half import ClientHalf
from fedsim.client.whole import Cohort, Worked
from fedsim.errors import ResumeError
from fedsim.parts import Range
from fedsim.records import Instructions, Params, Replies, moved
from fedsim.strategy import FedsimStrategy, Round, State
from privacy.clipped_strategy import Visit
from privacy.diff2_schedule import Releases, of_rounds
from strategies.diff2 import ESTIMATE, PREVIOUS, Differences, Recursion, check_unsampled, clipped

WORKER, FIRST = "worker", "first-batch"


@dataclass(frozen=True)
class LocalSteps(ClientHalf):
    """What DIFF2's clients send; in every second round, the model of the one that was drawn."""

    strategy: BvrLSGD

    def run(self, cohort: Cohort) -> Worked:
        if WORKER not in cohort.told:
            return Differences(self.strategy.min_examples).run(cohort)
        count, start = len(cohort), cohort.start
        arrays = {name: tensor.expand(count, *tensor.shape) for name, tensor in start.items()}
        for name in cohort.trainable:
            arrays[name] = start[name].new_zeros(count, *start[name].shape)
        for row in np.flatnonzero(cohort.clients == int(cohort.told[WORKER])).tolist():
            for name, tensor in self._steps(cohort, row).items():
                arrays[name][row] = tensor
        return Worked(arrays=arrays)

    def _steps(self, cohort: Cohort, row: int) -> Params:
        """Return θ_{K+1} of one client."""
        names, strategy = cohort.trainable, self.strategy
        old = {name: cohort.arrays[PREVIOUS + name][row] for name in names}
        new = {name: cohort.start[name] for name in names}
        estimate = {name: cohort.arrays[ESTIMATE + name][row].double() for name in names}
        parts = np.array_split(cohort.rows(row), strategy.local_batches)
        mechanism, first = strategy.mechanism, int(cohort.told[FIRST])
        source = None
        if mechanism is not None:
            source = mechanism.local_source(cohort.server_round, int(cohort.clients[row]))
        for batch in strategy.batches(first):
            step = [(new[name].double() - old[name].double()).norm() for name in names]
            clip_norm = strategy.clip_local * float(torch.stack(step).norm())
            change = {name: torch.zeros_like(estimate[name]) for name in names}
            for piece in cohort.batches(parts[batch]):
                here, _ = cohort.gradients({**cohort.start, **new}, piece)
                before, _ = cohort.gradients({**cohort.start, **old}, piece)
                vectors = {name: here[name] - before[name] for name in names}
                for name, vector in clipped(vectors, clip_norm)[0].items():
                    change[name] += vector.sum(0, dtype=torch.float64)
            if mechanism is not None and source is not None:
                mechanism.add_(change, source, mechanism.schedule.local_noise * clip_norm)
            for name in names:
                # Not in place: within one process it is the server's.
                estimate[name] = estimate[name] + change[name] / max(1, len(parts[batch]))
            old, new = new, moved(new, estimate, -strategy.server_lr)
        return new


@dataclass(kw_only=True)
class BvrLSGD(Recursion):
    """Steps on the recursive estimate of the gradient, and local ones of one client in between.

    Attributes:
        clip_local: C3, in multiples of the last step's length.
        local_steps: K.
        local_batches: m, of each client. A batch holds 1/m of its records.
    """

    clip_local: Annotated[float, Range(gt=0)] = 3.0
    local_steps: Annotated[int, Range(ge=1)] = 4
    local_batches: Annotated[int, Range(ge=1)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._due = False
        self._turns: dict[int, int] = {}

    @property
    def client_half(self) -> ClientHalf:
        return LocalSteps(self)

    def batches(self, first: int) -> Iterator[int]:
        """Return the batches of K steps of a client that has taken `first` steps before."""
        return (step % self.local_batches for step in range(first, first + self.local_steps))

    def releases_in(self, rounds: int, *, seed: int, num_clients: int) -> Releases:
        """See `ClippedSums`: E is that of the client that is drawn most often."""
        drawn = [
            _draw(seed, server_round, np.arange(num_clients))
            for server_round in range(2, rounds + 1, 2)
        ]
        steps = max(np.bincount(drawn), default=0) * self.local_steps
        visits = -(-int(steps) // self.local_batches)
        return of_rounds(rounds - len(drawn), self.restart, visits)

    def client_payload(self, context: Round) -> Params:
        if self.visit is None:
            return super().client_payload(context)
        count = len(context.asked)
        return {
            prefix + name: tensor.expand(count, *tensor.shape)
            for prefix, tensors in ((PREVIOUS, self._previous), (ESTIMATE, self._estimate))
            for name, tensor in tensors.items()
        }

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Instructions:
        """Configure a round of gradients, or name the client that takes local steps."""
        self.visit = None
        if self.federation is None:
            asked, seed = self._nodes(grid).connected(), 0
        else:
            check_unsampled(self.federation.schedule.sampling())
            asked = self.federation.schedule.select(server_round)
            seed = self.federation.seed
        if not self._due or not len(asked):
            return super().configure_train(server_round, arrays, config, grid)
        worker = _draw(seed, server_round, asked)
        first = self._turns.get(worker, 0)
        self._turns[worker] = (first + self.local_steps) % self.local_batches
        self.visit = Visit(worker=worker, batches=tuple(self.batches(first)))
        told = ConfigRecord({**config, WORKER: worker, FIRST: first})
        return FedsimStrategy.configure_train(self, server_round, arrays, told, grid)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        if self.visit is None:
            params = super().aggregate(context, replies)
            self._due = bool(self._estimate) and (self._due or len(context.asked) > 0)
            return params
        self._due, found = False, None
        for chunk in replies.chunks():
            for row in np.flatnonzero(chunk.client_index == self.visit.worker).tolist():
                found = {name: chunk.arrays[name][row].clone() for name in self._previous}
        if found is None:
            self._forget()
            return context.params
        return {**context.params, **found}

    def state_dict(self) -> State:
        workers = np.array(sorted(self._turns), np.int64)
        turns = np.array([self._turns[worker] for worker in workers.tolist()], np.int64)
        own: State = {"due": int(self._due), "workers": workers, "turns": turns}
        return super().state_dict() | own

    def load_state_dict(self, state: State) -> None:
        own = {"due", "workers", "turns"}
        if not own <= set(state):
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)}, which is not that of "
                "BVR-L-SGD; was the strategy changed?"
            )
        super().load_state_dict({key: value for key, value in state.items() if key not in own})
        self._due = bool(state["due"])
        workers, turns = (np.asarray(state[key], np.int64).tolist() for key in ("workers", "turns"))
        self._turns = dict(zip(workers, turns, strict=True))


def _draw(seed: int, server_round: int, asked: np.ndarray) -> int:
    """Return one of the clients that are asked, each as likely as any other."""
    return int(asked[seeds.rng(seed, server_round, seeds.SERVER, "worker").integers(len(asked))])
