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
        mean_BC, size_B = y[:, :-1], y[:, -1]
        true_Bk = places(outputs, size_B)
        if task == "regression":
            return self._squared(outputs, mean_BC, size_B, true_Bk)
        return self._entropy(F.log_softmax(outputs, -1), on_simplex(mean_BC), size_B, true_Bk)

    @property
    def gap(self) -> float:
        """The weight of L_ins − L_bag."""
        return {"instance": 1.0, "interpolating": self.rho}.get(self.kind, 0.0)

    def _squared(self, z_BkC: Tensor, mean_BC: Tensor, size_B: Tensor, true_Bk: Tensor) -> Tensor:
        if self.kind == "dllp":
            raise no_classes("dllp")
        center_BC = bag_mean(z_BkC, size_B, true_Bk)
        loss_BC = (mean_BC - center_BC).square()
        if self.gap:
            spread_BkC = (z_BkC - center_BC.unsqueeze(1)).square()
            loss_BC = loss_BC + self.gap * bag_mean(spread_BkC, size_B, true_Bk)
        return loss_BC.mean(1)

    def _entropy(
        self, log_p_BkC: Tensor, mean_BC: Tensor, size_B: Tensor, true_Bk: Tensor
    ) -> Tensor:
        terms_BC = torch.zeros_like(mean_BC)
        if self.gap != 1:
            hidden = log_p_BkC.masked_fill(~true_Bk.unsqueeze(2), -torch.inf)
            log_mean_BC = torch.logsumexp(hidden, 1) - size_B.log().unsqueeze(1)
            terms_BC = terms_BC + (1 - self.gap) * log_mean_BC
        if self.gap:
            terms_BC = terms_BC + self.gap * bag_mean(log_p_BkC, size_B, true_Bk)
        return -(mean_BC * terms_BC).sum(1)


@dataclass(frozen=True)
class EasyLLP(ClientHalf):
    """Weighted labels; a criterion of the whole batch, from which the prior may come."""

    takes_bags = True

    prior: tuple[float, ...] = ()

    def criterion(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        if not in_bags(outputs, batch.y):
            return super().criterion(outputs, batch, context)
        if context.task == "regression":
            raise no_classes("easyllp")
        mean_BC, size_B = batch.y[:, :-1], batch.y[:, -1]
        log_p_BC = bag_mean(F.log_softmax(outputs, -1), size_B, places(outputs, size_B))
        return -(self.weights(mean_BC, size_B) * log_p_BC).sum(1).mean()

    def weights(self, mean_BC: Tensor, size_B: Tensor) -> Tensor:
        """Return w, `[B, C]`."""
        size_B1 = size_B.unsqueeze(1)
        if self.prior:
            p_BC = mean_BC.new_tensor(self.prior)
        elif len(mean_BC) == 1:
            p_BC = mean_BC
        else:
            count_BC = size_B1 * mean_BC
            p_BC = (count_BC.sum(0) - count_BC) / (size_B1.sum(0) - size_B1)
        return size_B1 * (mean_BC - p_BC) + p_BC


def in_bags(outputs: Tensor, y: Tensor) -> bool:
    """Whether a sample is a bag, rather than one sample with its own response."""
    return outputs.dim() == 3 and y.is_floating_point() and y.dim() == 2


def places(outputs: Tensor, size_B: Tensor) -> Tensor:
    """Return which places of each bag are true, `[B, k]`."""
    return torch.arange(outputs.shape[1], device=outputs.device) < size_B.unsqueeze(1)


def no_classes(kind: str) -> ConfigError:
    """Return the error of a loss of proportions on numbers."""
    return ConfigError(
        f"loss: {kind} is for class proportions, and this data set's responses are numbers; use "
        "strategy.loss=interpolating"
    )


def bag_mean(values_BkC: Tensor, size_B: Tensor, true_Bk: Tensor) -> Tensor:
    """Return the mean over each bag's true places, `[B, C]`."""
    return (values_BkC * true_Bk.unsqueeze(2)).sum(1) / size_B.unsqueeze(1)


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
            return EasyLLP(tuple(self.prior or ()))
        return BagLoss(self.loss, self.rho)

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, chunk.weights(self.weighting))
        return total.mean(self.server_lr)
