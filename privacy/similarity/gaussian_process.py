"""Kernel density at fixed points, by a Gaussian process (Hall, Rinaldo, Wasserman 2013).

    S_q = Σ_x k(x, y_q) + s·G_q      G ~ N(0, K + λI),  K = k(y_q, y_r)      arXiv:1203.2570

The noise is as alike at two points as their answers are, and there is one draw of it: a point that
is asked for again gets what was released. Points that were not released are refused.

Sensitivity, in the norm ‖(K + λI)^(−1/2) ·‖ that this noise goes by: f = Σ_x k(x, ·) moves by
k(x, ·), of RKHS norm √k(x, x) = 1 (add/remove), or by k(x, ·) − k(x', ·), of norm
√(2 − 2k(x, x')) ≤ √2. The values at any points have at most that norm: K^(−1/2) of them is the norm
of the projection of f's change onto the span of the k(y_q, ·). Rounding to UNIT adds at most
√Q·UNIT/√λ; it is why there is a λ. So Gaussian noise with s = z·C needs C = 1 or √2 (+ rounding),
the same for any number of points.

Shapes: N records, Q points.

Differs from the paper: λ, and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary
from privacy.similarity.exact import Kernel, kernel_sums, kernel_value, norm_of
from privacy.similarity.fixed_point import UNIT, units

JITTER = 1e-6


@dataclass(frozen=True, kw_only=True)
class GaussianProcess(Summary):
    """A density at fixed points.

    Attributes:
        points: y_q, public: one row of D numbers each, at least one.
        kernel, bandwidth: k and σ.
    """

    points: Sequence[Sequence[float]]
    kernel: Kernel = "gaussian"
    bandwidth: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.points or any(len(row) != self.dimension for row in self.points):
            raise ConfigError(
                f"points: {len(self.points)} rows, not all of {self.dimension} numbers; give at "
                "least one point, and the inputs of the data"
            )
        if len(self.points) > 4096:
            raise ConfigError(
                f"points: {len(self.points)}; at most 4096, whose noise is drawn together"
            )

    @property
    def size(self) -> int:
        return len(self.points)

    @cached_property
    def _points(self) -> Tensor:
        return torch.tensor(self.points, dtype=torch.float64)

    def _values(self, x_ND: Tensor) -> Tensor:
        # Pair by pair, and not by inner products: a record's values must not depend on its batch.
        points = self._points.to(x_ND.device)
        away_NQ = torch.zeros(len(x_ND), self.size, dtype=torch.float64, device=x_ND.device)
        first = norm_of(self.kernel) == 1
        for d in range(self.dimension):
            one = (x_ND[:, d, None].double() - points[:, d]).nan_to_num(1e150).clamp(-1e150, 1e150)
            away_NQ += one.abs() if first else one * one
        away_NQ = away_NQ if first else away_NQ.sqrt()
        return kernel_value(self.kernel, away_NQ, self.bandwidth)

    def features(self, x_ND: Tensor) -> Tensor:
        return units(self._values(x_ND))

    def l1(self, relation: Relation) -> float:
        raise ConfigError(
            "noise: laplace is for independent numbers; the Gaussian process needs noise=gaussian"
        )

    def l2(self, relation: Relation) -> float:
        """Return the bound in the norm of the noise's covariance; see this file's header."""
        bound = 1.0 if relation == "add_remove" else math.sqrt(2)
        return bound + UNIT * math.sqrt(self.size) / math.sqrt(JITTER)

    def coloured(self, white_F: Tensor) -> Tensor:
        """See `Summary.coloured`: the process at the points."""
        return self.colour @ white_F

    @cached_property
    def colour(self) -> Tensor:
        """L with L L' = K + λI."""
        gram = self._values(self._points)
        gram = (gram + gram.T) / 2
        found: Tensor = torch.linalg.cholesky(
            gram + JITTER * torch.eye(self.size, dtype=torch.float64)
        )
        return found

    def _where(self, y_QD: Tensor) -> Tensor:
        """Return which of the points each query is.

        Raises:
            ConfigError: One is none of them.
        """
        same = (y_QD.double()[:, None] == self._points.to(y_QD.device)).all(2)
        if not bool(same.any(1).all()):
            missing = int((~same.any(1)).nonzero()[0])
            raise ConfigError(
                f"query {missing} is none of the {self.size} points whose answers were released; "
                "ask for those, or release random features, which answer any query"
            )
        return same.double().argmax(1)

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        return prepared["sums"][self._where(y_QD)]

    def gain(self, y_QD: Tensor) -> Tensor:
        return torch.full_like(y_QD[:, 0], math.sqrt(1 + JITTER), dtype=torch.float64)

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return kernel_sums(x_ND, y_QD, self.kernel, self.bandwidth)
