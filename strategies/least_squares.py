"""Least squares over clients in closed form: sufficient statistics are exchanged once.

    client k:  A_k = Σ_a [(1 − ρ) x̄_a x̄_a' + ρ mean_i x_ai x_ai'],   b_k = Σ_a x̄_a ȳ_a',   m_k bags
    server:    θ = (Σ_k A_k)⁺ Σ_k b_k                                over the clients that replied

θ is the exact minimum of the interpolating loss (1 − ρ) L_bag + ρ L_ins of `strategies.aggregate`
with the squared error, so what SGD on it converges to; ρ = 1 on samples that are no bags is
ordinary least squares. x has a 1 appended, for the intercept; classes are regressed on as one-hot
codes. The pseudo-inverse (least norm) answers where there are fewer bags than unknowns.

A and b grow batch by batch in the arrays that clients get as zeros. Nothing needs a second round:
set rounds=1, participation=full and client.epochs=1 (more epochs count each bag more often, which
changes nothing; client.steps would leave some out).

Shapes: B bags of a batch, k places, F inputs (with the 1), D target columns.

Differs from the paper (Javanmard et al. 2024, arXiv:2401.11081, linear regression): federated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Batch, ClientContext, ClientHalf
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Params, Replies
from fedsim.strategy import FedsimStrategy, Round

GRAM, CROSS, COUNT = "gram", "cross", "count"


@dataclass(frozen=True)
class Statistics(ClientHalf):
    """Adds up statistics, and leaves the model as it is."""

    takes_bags = True

    rho: float

    def gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor, Params]:
        weight, _ = linear_names(params)
        columns, inputs = params[weight].shape
        y = batch.y
        if not y.is_floating_point():
            y_BD = F.one_hot(y, columns).to(params[weight].dtype)
        else:
            y_BD = y[:, :columns]
        if y.is_floating_point() and y.shape[1] == columns + 1:  # bags
            x_BkF = with_one(batch.x.flatten(2), inputs)
            true_Bk = torch.arange(x_BkF.shape[1], device=y.device) < y[:, -1:]
            share_Bk = true_Bk / y[:, -1:]
        else:
            x_BkF = with_one(batch.x.flatten(1).unsqueeze(1), inputs)
            share_Bk = x_BkF.new_ones(x_BkF.shape[:2])
        mean_BF = torch.einsum("bk,bkf->bf", share_Bk, x_BkF)
        each_FF = torch.einsum("bk,bkf,bkg->fg", share_Bk, x_BkF, x_BkF)
        grams = (1 - self.rho) * mean_BF.T @ mean_BF + self.rho * each_FF
        own = context.arrays
        arrays = {
            GRAM: own[GRAM] + grams,
            CROSS: own[CROSS] + mean_BF.T @ y_BD,
            COUNT: own[COUNT] + len(y),
        }
        zeros = {name: torch.zeros_like(params[name]) for name in context.trainable}
        return zeros, y_BD.square().mean(), arrays

    def upload(self, params: Params, context: ClientContext) -> Params:
        return dict(context.arrays)


def with_one(x_BkF: Tensor, inputs: int) -> Tensor:
    """Return inputs with a 1 appended."""
    if x_BkF.shape[-1] != inputs or not x_BkF.is_floating_point():
        raise _not_linear(f"takes {inputs} inputs where a sample has {x_BkF.shape[-1]}")
    return torch.cat([x_BkF, x_BkF.new_ones(*x_BkF.shape[:2], 1)], 2)


def linear_names(params: Params) -> tuple[str, str]:
    """Return the names of a linear model's weight and bias.

    Raises:
        ConfigError: The model is no linear one.
    """
    by_dims = {tensor.dim(): name for name, tensor in params.items()}
    if len(params) != 2 or set(by_dims) != {1, 2}:
        raise _not_linear(f"has tensors {[list(t.shape) for t in params.values()]}")
    return by_dims[2], by_dims[1]


def _not_linear(why: str) -> ConfigError:
    return ConfigError(
        "strategy=least_squares has a closed form for one linear layer with a bias only, and the "
        f"model {why}; use model=linear, or strategy=aggregate"
    )


@dataclass(kw_only=True)
class LeastSquares(FedsimStrategy):
    """The least-squares solution of all clients' bags, or samples.

    Attributes:
        rho: ρ of the interpolating loss.
        ridge: λ: adds λ ‖W‖² to the mean loss; the intercept is free.
    """

    rho: Annotated[float, Range(ge=0)] = 0.1
    ridge: Annotated[float, Range(ge=0)] = 0.0

    @property
    def client_half(self) -> ClientHalf:
        return Statistics(self.rho)

    def client_payload(self, context: Round) -> Params:
        zeros = self.upload_like(context)
        return {name: t.expand(len(context.asked), *t.shape).clone() for name, t in zeros.items()}

    def upload_like(self, context: Round) -> Params:
        weight, _ = linear_names(context.params)
        w = context.params[weight]
        columns, inputs = w.shape
        return {
            GRAM: w.new_zeros(inputs + 1, inputs + 1),
            CROSS: w.new_zeros(inputs + 1, columns),
            COUNT: w.new_zeros(()),
        }

    def aggregate(self, context: Round, replies: Replies) -> Params:
        total = {
            name: np.zeros(tuple(like.shape)) for name, like in self.upload_like(context).items()
        }
        for chunk in replies.chunks():
            for name, sums in total.items():
                sums += chunk.client_arrays[name].sum(0, dtype=torch.float64).cpu().numpy()
        if not total[COUNT]:
            return context.params
        gram, cross = total[GRAM] / total[COUNT], total[CROSS] / total[COUNT]
        gram += self.ridge * np.diag([1.0] * (len(gram) - 1) + [0.0])
        theta_FD = torch.from_numpy(np.linalg.pinv(gram, hermitian=True) @ cross)
        weight, bias = linear_names(context.params)
        w, b = context.params[weight], context.params[bias]
        return {
            weight: theta_FD[:-1].T.contiguous().to(w.device, w.dtype),
            bias: theta_FD[-1].contiguous().to(b.device, b.dtype),
        }
