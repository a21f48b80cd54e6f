"""Learning from aggregate responses: FedAvg on bags of which only the mean response is known.

Bag-level, instance-level and interpolating losses of Javanmard, Chen, Mirrokni, Badanidiyuru & Fu
(ICLR 2024, arXiv:2401.11081), and two losses for label proportions: DLLP (Ardehaly & Culotta, ICDM
workshops 2017, arXiv:1703.00830) and EasyLLP (Busa-Fekete et al., ICML 2023, arXiv:2302.03115).

    bag             L_bag = (1/m) Σ_a ℓ(ȳ_a, mean_i f(x_ai))
    instance        L_ins = (1/m) Σ_a mean_i ℓ(ȳ_a, f(x_ai))
    interpolating   (1 − ρ) L_bag + ρ L_ins  =  L_bag + ρ (L_ins − L_bag),    L_ins ≥ L_bag
    dllp            L_bag of the cross-entropy, f being the class probabilities
    easyllp         (1/m) Σ_a mean_i Σ_c w_ac (−log f_c(x_ai)),    w_ac = s_a (ȳ_ac − p_c) + p_c
    server          x ← x + η · Σ_k m_k (y_k − x) / Σ_k m_k          m_k bags of client k

ℓ is the squared error, or the cross-entropy −Σ_c ȳ_c log f_c. Both are convex in f, so L_ins ≥
L_bag; for the squared error the gap is the mean within-bag variance of f, which ρ (of any size,
also over 1) penalises. The EasyLLP weight of class c has mean P[y = c | x] over random bags if p
is the classes' prior: the loss is unbiased for ordinary cross-entropy. With `prior` null, p of a
bag is the proportion in the *other* bags of its batch, which is independent of the bag, so that the
mean is right whatever the prior is; a batch of one bag takes p = ȳ, the instance loss. Noise of
mean zero on ȳ keeps EasyLLP unbiased; the other losses take a ȳ that noise has moved off the
simplex for its positive part, scaled to sum to one. A sample that is no bag is a bag of one, where
all losses are the ordinary one.

Shapes: B bags of a batch, k places of which the first s_B are true, C classes or target columns.

Differs from the papers: bags may differ in size, and each counts the same, as do its samples within
it; for classes, the mean prediction of `bag` is that of probabilities, not logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Batch, ClientContext, ClientHalf
from fedsim.data.dataset import Task
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round

Loss = Literal["bag", "instance", "interpolating", "dllp", "easyllp"]


@dataclass(frozen=True)
class BagLoss(ClientHalf):
    """The losses above that are means over bags."""

    takes_bags = True

    kind: Loss
    rho: float

    def sample_losses(self, task: Task, outputs: Tensor, y: Tensor) -> Tensor:
        if not in_bags(outputs, y):
            return super().sample_losses(task, outputs, y)
        mean_BC, share_Bk1 = y[:, :-1], shares(outputs, y)
        if task == "regression":
            return self._squared(outputs, mean_BC, share_Bk1)
        return self._entropy(F.log_softmax(outputs, -1), on_simplex(mean_BC), share_Bk1)

    @property
    def gap(self) -> float:
        """The weight of L_ins − L_bag."""
        return {"instance": 1.0, "interpolating": self.rho}.get(self.kind, 0.0)

    def _squared(self, z_BkC: Tensor, mean_BC: Tensor, share_Bk1: Tensor) -> Tensor:
        if self.kind == "dllp":
            raise no_classes("dllp")
        center_BC = (z_BkC * share_Bk1).sum(1)
        loss_BC = (mean_BC - center_BC).square()
        if self.gap:
            spread_BkC = (z_BkC - center_BC.unsqueeze(1)).square()
            loss_BC = torch.add(loss_BC, (spread_BkC * share_Bk1).sum(1), alpha=self.gap)
        return loss_BC.mean(1)

    def _entropy(self, log_p_BkC: Tensor, mean_BC: Tensor, share_Bk1: Tensor) -> Tensor:
        loss_B = log_p_BkC.new_zeros(len(mean_BC))
        if self.gap != 1:  # the log of a share is −inf in padding
            log_mean_BC = torch.logsumexp(log_p_BkC + share_Bk1.log(), 1)
            loss_B = (mean_BC * (self.gap - 1) * log_mean_BC).sum(1)
        if self.gap:
            weight_BkC = mean_BC.unsqueeze(1) * (-self.gap * share_Bk1)
            loss_B = loss_B + (weight_BkC * log_p_BkC).sum((1, 2))
        return loss_B


@dataclass(frozen=True)
class EasyLLP(ClientHalf):
    """Weighted labels, with a known prior."""

    takes_bags = True

    prior: tuple[float, ...]

    def sample_losses(self, task: Task, outputs: Tensor, y: Tensor) -> Tensor:
        if not in_bags(outputs, y):
            return super().sample_losses(task, outputs, y)
        if task == "regression":
            raise no_classes("easyllp")
        weight_BkC = self.weights(y[..., :-1], y[..., -1:]).unsqueeze(-2) * shares(outputs, y)
        return -(weight_BkC * F.log_softmax(outputs, -1)).sum((-2, -1))

    def weights(self, mean_BC: Tensor, size_B1: Tensor) -> Tensor:
        """Return w, `[B, C]`: s ȳ + (1 − s) p."""
        count_BC = size_B1 * mean_BC
        return torch.addcmul(count_BC, self.priors(count_BC, size_B1), 1 - size_B1)

    def priors(self, count_BC: Tensor, size_B1: Tensor) -> Tensor:
        """Return p of each bag, `[B, C]`, or of all of them, `[C]`."""
        classes = count_BC.shape[-1]
        if len(self.prior) != classes:
            raise ConfigError(
                f"prior: {list(self.prior)} is not of the {classes} classes of this data; give "
                "one number for each, or null"
            )
        return count_BC.new_tensor(self.prior)


@dataclass(frozen=True)
class EasyLLPOfOthers(EasyLLP):
    """The same with the prior from the other bags of a batch, so that its losses hang together.

    All of it also takes many clients' batches, with their axis first.
    """

    prior: tuple[float, ...] = ()

    def criterion(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        return self.sample_losses(context.task, outputs, batch.y).mean()

    def criteria(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        y = batch.y
        if in_bags(outputs, y):
            return self.sample_losses(context.task, outputs, y).mean(1)
        alone = self.sample_losses(context.task, outputs.flatten(0, 1), y.flatten(0, 1))
        return alone.view(y.shape[:2]).mean(1)

    def priors(self, count_BC: Tensor, size_B1: Tensor) -> Tensor:
        if count_BC.shape[-2] == 1:
            return count_BC / size_B1
        total_1C, total_11 = count_BC.sum(-2, keepdim=True), size_B1.sum(-2, keepdim=True)
        return (total_1C - count_BC) / (total_11 - size_B1)


def in_bags(outputs: Tensor, y: Tensor) -> bool:
    """Whether a sample is a bag, rather than one sample with its own response."""
    return y.is_floating_point() and outputs.dim() == y.dim() + 1


def shares(outputs: Tensor, y: Tensor) -> Tensor:
    """Return what each place counts in its bag's mean: 1/s, or 0 in padding; `[B, k, 1]`."""
    size_B1 = y[..., -1:]
    true_Bk = torch.arange(outputs.shape[-2], device=y.device) < size_B1
    return (true_Bk / size_B1).unsqueeze(-1)


def no_classes(kind: str) -> ConfigError:
    """Return the error of a loss of proportions on numbers."""
    return ConfigError(
        f"loss: {kind} is for class proportions, and this data set's responses are numbers; use "
        "strategy.loss=interpolating"
    )


def on_simplex(mean_BC: Tensor) -> Tensor:
    """Return the positive part of proportions, scaled to sum to one; what does so stays."""
    positive_BC = mean_BC.clamp(min=0)
    return positive_BC / positive_BC.sum(1, keepdim=True).clamp(min=1e-12)


@dataclass(kw_only=True)
class Aggregate(FedsimStrategy):
    """Weighted mean of updates that clients made from bags.

    Attributes:
        loss: `bag`, `instance`, `interpolating`; for classes also `dllp` (the same as `bag`) and
            `easyllp`.
        rho: ρ of `interpolating`; 0 is `bag`, 1 is `instance`.
        prior: EasyLLP's p, a number for each class; null: from the other bags of the batch.
        weighting: `examples` (bags) or `uniform`.
        server_lr: η.
    """

    of_mean_only = True

    loss: Loss = "interpolating"
    rho: Annotated[float, Range(ge=0)] = 0.1
    prior: list[float] | None = None
    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior is not None:
            if self.loss != "easyllp":
                raise ConfigError(
                    f"prior: {self.prior} is for loss=easyllp only, and this is loss={self.loss}; "
                    "leave it out"
                )
            if min(self.prior, default=-1) < 0 or abs(sum(self.prior) - 1) > 1e-6:
                raise ConfigError(
                    f"prior: {self.prior} is no distribution; give one number >= 0 for each class, "
                    "that sum to 1, or null"
                )

    @property
    def client_half(self) -> ClientHalf:
        if self.loss == "easyllp":
            return EasyLLP(tuple(self.prior)) if self.prior else EasyLLPOfOthers()
        return BagLoss(self.loss, self.rho)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.weights(self.weighting))
        return total.mean(self.server_lr)
