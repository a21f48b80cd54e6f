"""SemiFL (Diao, Ding, Tarokh, NeurIPS 2022, arXiv:2106.01432), its FixMatch form ("fix").

    user k:  ŷ = argmax p_x(weak(u)) where max p_x(weak(u)) ≥ τ, of the windows u without a label
             y_k ← x; steps on the cross-entropy of (strong(u), ŷ), and of (weak(u), y) where known
    server:  x ← mean_k y_k           over the users that had something to learn from
    server:  x ← steps on the cross-entropy of (weak(s), y) of its own labelled samples s

One classifier for all. Pseudo-labels are those of x, as it was received, throughout a round; the
server's steps after each average ("alternate training") keep them good. τ = 1 is the server alone,
as no probability is above it. With `data.labelled=1` it is FedAvg on all labels and the server's,
an upper bound to what pseudo-labels can do.

`weak` adds noise; `strong` adds more, scales each channel, and blanks a stretch of the window.

Shapes: K users of a round, B windows of a batch.

Differs from the paper: without its Mixup term ("mix") and the momentum of its server; users may
know some labels; weak(u) is drawn again whenever u comes; steps may be Adam's. The augmentation is
made for windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.half import UNLABELLED, ClientHalf
from fedsim.client.sequential import TRAIN_LOSS
from fedsim.client.whole import Cohort, Worked
from fedsim.parts import Range
from fedsim.records import Chunk, Params, Replies, UpdateSum
from fedsim.stacked_fit import IGNORED, Optimiser, fit
from fedsim.strategy import FedsimStrategy, Round
from strategies.classified import classifier_of, log_probabilities, losses, plain


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Two versions of a window, given as it is: `[n, ..., W, C]`, or features `[n, D]`.

    Attributes:
        weak, strong: Standard deviations of the noise; inputs are standardised.
        scale: Spread of the factor of each channel.
        blank: Share of the time that is set to 0, the mean.
    """

    weak: float
    strong: float
    scale: float
    blank: float

    def __call__(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (weak, strong); always of as many draws."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64).to(x.device, x.dtype)

        weak = x + self.weak * normal(*x.shape)
        strong = (1 + self.scale * normal(len(x), *[1] * (x.dim() - 2), x.shape[-1])) * x
        strong = strong + self.strong * normal(*x.shape)
        time = x.dim() - 2 if x.dim() > 2 else 1
        length = x.shape[time]
        width = round(self.blank * length)
        first = torch.rand(len(x), generator=rng, dtype=torch.float64) * (length - width + 1)
        gap = torch.arange(length) - first.floor()[:, None]
        kept = ~((gap >= 0) & (gap < width)).to(x.device)
        shape = [len(x), *[1] * (time - 1), length, *[1] * (x.dim() - 1 - time)]
        return weak, strong * kept.view(shape)


@dataclass(frozen=True)
class PseudoLabelled(ClientHalf):
    """Users who learn from what the model that they receive is sure of."""

    threshold: float
    augmentation: Augmentation
    optimiser: Optimiser

    takes_unlabelled = True

    @property
    def ignored_work(self) -> tuple[str, ...]:  # type: ignore[override]
        return IGNORED[self.optimiser]

    def run(self, cohort: Cohort) -> Worked:
        model = plain(cohort.model).eval()
        start = {name: cohort.start[name] for name in cohort.trainable}
        rest = {name: t for name, t in cohort.start.items() if name not in start}
        count = len(cohort)

        def rows(params: Params) -> Params:
            return {n: t.expand(count, *t.shape) for n, t in params.items()}

        fitted, loss_K = fit(
            rows(start),
            self._batches(cohort),
            lambda p, x, y: losses(model, p, x, y),
            lr=cohort.lr,
            optimiser=self.optimiser,
            momentum=cohort.momentum,
            weight_decay=cohort.weight_decay,
            fixed=rows(rest),
        )
        return Worked(arrays={**rows(rest), **fitted}, metrics={TRAIN_LOSS: loss_K})

    def _batches(self, cohort: Cohort) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        model = cohort.model
        rngs = [
            seeds.torch_rng(cohort.seed, cohort.server_round, client, "augmentation")
            for client in cohort.clients.tolist()
        ]
        for batch, true_KB in cohort.steps():
            weak, strong = batch.x.clone(), batch.x.clone()
            for k, rng in enumerate(rngs):
                n = int(true_KB[k].sum())
                weak[k, :n], strong[k, :n] = self.augmentation(batch.x[k, :n], rng)
            with torch.no_grad():
                log_KBC = torch.stack([log_probabilities(model, cohort.start, x) for x in weak])
            sure_KB, guess_KB = log_KBC.exp().max(-1)
            known_KB = batch.y != UNLABELLED
            x = torch.where(known_KB.view(*known_KB.shape, *[1] * (weak.dim() - 2)), weak, strong)
            y = torch.where(known_KB, batch.y, guess_KB)
            # Strictly above, for what is certain to the last bit: with τ = 1 nobody learns.
            sure = (sure_KB >= self.threshold) & (self.threshold < 1)
            yield (x, y), true_KB & (known_KB | sure)


@dataclass(kw_only=True)
class SemiFL(FedsimStrategy):
    """Users learn from pseudo-labels, and the server from labels, in turn.

    Attributes:
        threshold: τ.
        weak, strong: Noise of the two augmentations, of standardised inputs.
        scale: Spread of the factor of each channel in the strong one.
        blank: Share of a window that it blanks.
        optimiser: Of the users' and the server's steps.
        server_epochs, server_lr, server_batch: Of the server's steps.
    """

    threshold: Annotated[float, Range(gt=0, le=1)] = 0.95
    weak: Annotated[float, Range(ge=0)] = 0.05
    strong: Annotated[float, Range(ge=0)] = 0.2
    scale: Annotated[float, Range(ge=0)] = 0.2
    blank: Annotated[float, Range(ge=0, lt=1)] = 0.3
    optimiser: Optimiser = "sgd"
    server_epochs: Annotated[int, Range(ge=1)] = 5
    server_lr: Annotated[float, Range(gt=0)] = 0.03
    server_batch: Annotated[int, Range(ge=1)] = 32

    @property
    def augmentation(self) -> Augmentation:
        """What both sides make of their windows."""
        return Augmentation(weak=self.weak, strong=self.strong, scale=self.scale, blank=self.blank)

    @property
    def client_half(self) -> ClientHalf:
        return PseudoLabelled(self.threshold, self.augmentation, self.optimiser)

    def client_payload(self, context: Round) -> Params:
        classifier_of(self, context.params)  # or says that users cannot train it
        return {}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            active = chunk.rows(_has_learnt(chunk, context.params))
            if len(active):
                total.add(active.arrays, np.ones(len(active)))
        return self._alternate(context.server_round, total.mean(1.0))

    def _alternate(self, server_round: int, params: Params) -> Params:
        """Return a model after the server's own steps."""
        federation = self.federation
        if federation is None or federation.model is None or federation.server_data is None:
            return params
        model, data = plain(federation.model).eval(), federation.server_data
        trained = classifier_of(self, params)
        fixed = {name: t.unsqueeze(0) for name, t in params.items() if name not in trained}

        def batches() -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
            rng = seeds.rng(federation.seed, server_round, seeds.SERVER, "alternate-batches")
            noise = seeds.torch_rng(federation.seed, server_round, seeds.SERVER, "augmentation")
            for _ in range(self.server_epochs):
                order = torch.from_numpy(rng.permutation(len(data.y))).to(data.y.device)
                for index in torch.split(order, self.server_batch):
                    weak, _ = self.augmentation(data.x[index], noise)
                    yield (weak[None], data.y[index][None]), torch.ones(1, len(index)).to(weak)

        fitted, _ = fit(
            {name: t.unsqueeze(0) for name, t in trained.items()},
            batches(),
            lambda p, x, y: losses(model, p, x, y),
            lr=self.server_lr,
            optimiser=self.optimiser,
            fixed=fixed,
        )
        return {**params, **{name: rows[0] for name, rows in fitted.items()}}


def _has_learnt(chunk: Chunk, params: Params) -> np.ndarray:
    """Return who sends another model than it was sent, bool `[K]`: others were sure of nothing."""
    learnt_K = torch.zeros(len(chunk), dtype=torch.bool)
    for name, rows in chunk.arrays.items():
        learnt_K |= (rows != params[name]).reshape(len(rows), -1).any(1).cpu()
    found: np.ndarray = learnt_K.numpy()
    return found
