"""Baseline: the Bernstein mechanism (Aldà and Rubinstein 2017, "The Bernstein Mechanism", AAAI).

    S_i = Σ_x k(x, p_i)  at the (k + 1)^D points p_i = low + (high − low) i/k of a lattice
    answer(y) = Σ_i (B^(h) applied to S)_i Π_d C(k, i_d) u_d^(i_d) (1 − u_d)^(k − i_d)

B takes a function's values at the lattice to its Bernstein polynomial's; B^(h) = Σ_{m<h} (I − B)^m
is the iterated operator, whose error falls as k^(−h) for smooth functions.

Sensitivity: 0 ≤ k(x, p) ≤ 1, so a record moves each value by at most 1, added, removed or replaced:
L1 ≤ (k + 1)^D and L2 ≤ (k + 1)^(D/2) under either relation.

Shapes: N records, Q queries, D inputs, F = (k + 1)^D.

Differs from the paper: nothing but rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from scipy.stats import qmc
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary, pieces
from privacy.similarity.exact import Kernel, kernel_sums, kernel_value, norm_of
from privacy.similarity.fixed_point import widened
from privacy.similarity.gaussian_process import GaussianProcess


@dataclass(frozen=True, kw_only=True)
class Bernstein(Summary):
    """A density at a lattice.

    Attributes:
        kernel, bandwidth: k and σ.
        degree: k of the lattice.
        iterations: h.
        low, high: The range of every coordinate; queries are clipped to it.
    """

    kernel: Kernel = "gaussian"
    bandwidth: Annotated[float, Range(gt=0)] = 1.0
    degree: Annotated[int, Range(ge=1, le=200)] = 8
    iterations: Annotated[int, Range(ge=1, le=10)] = 2
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"low: {self.low!r} is not below high: {self.high!r}")
        if self.dimension > 6 or self.size > 4096:
            raise ConfigError(
                f"dimension: {self.dimension} takes a lattice of {self.degree + 1}^"
                f"{self.dimension} points; allowed: 6 dimensions and 4096 points; lower the "
                "degree, or use random features"
            )

    @property
    def size(self) -> int:
        return int((self.degree + 1) ** self.dimension)

    @cached_property
    def _lattice(self) -> GaussianProcess:
        """The values at the points, computed as there."""
        axis = torch.linspace(self.low, self.high, self.degree + 1, dtype=torch.float64)
        points = torch.cartesian_prod(*[axis] * self.dimension).view(-1, self.dimension)
        return GaussianProcess(
            dimension=self.dimension,
            points=points.tolist(),
            kernel=self.kernel,
            bandwidth=self.bandwidth,
        )

    def features(self, x_ND: Tensor) -> Tensor:
        return self._lattice.features(x_ND)

    def l1(self, relation: Relation) -> float:
        return widened(float(self.size), self.size, 1)

    def l2(self, relation: Relation) -> float:
        return widened(math.sqrt(self.size), self.size, 2)

    def _basis(self, u: Tensor) -> Tensor:
        """Return the Bernstein polynomials of one axis, `[..., k + 1]`."""
        k = self.degree
        terms = [math.comb(k, i) * u**i * (1 - u) ** (k - i) for i in range(k + 1)]
        return torch.stack(terms, -1)

    def _iterated(self, values: Tensor, *, transposed: bool) -> Tensor:
        """Return Σ_{m<h} (I − B)^m of values `[..., (k + 1)^D]`, or of its transpose."""
        axis = torch.linspace(0, 1, self.degree + 1, dtype=torch.float64, device=values.device)
        matrix = self._basis(axis)
        matrix = matrix.T if transposed else matrix
        shape = [self.degree + 1] * self.dimension
        total = power = values
        for _ in range(self.iterations - 1):
            smooth = power.reshape(-1, *shape)
            for d in range(1, self.dimension + 1):
                smooth = torch.tensordot(smooth, matrix, dims=([d], [1])).movedim(-1, d)
            power = power - smooth.reshape(values.shape)
            total = total + power
        return total

    def prepare(self, sums_F: Tensor, count: float, deviation: float = 0.0) -> Prepared:
        """Return the coefficients of the iterated polynomial."""
        found = super().prepare(sums_F, count, deviation)
        return {**found, "sums": self._iterated(sums_F, transposed=False)}

    def _weights(self, y_QD: Tensor) -> Tensor:
        u = ((y_QD.double() - self.low) / (self.high - self.low)).clamp(0, 1)
        product = self._basis(u[:, 0])
        for d in range(1, self.dimension):
            product = (product[:, :, None] * self._basis(u[:, d])[:, None]).flatten(1)
        return product

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        return self._weights(y_QD) @ prepared["sums"]

    def gain(self, y_QD: Tensor) -> Tensor:
        found: Tensor = self._iterated(self._weights(y_QD), transposed=True).norm(dim=1)
        return found

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """See `Summary.apart`: the polynomial's largest error for a record at one of 1000 places.

        They are spread over the range (Halton's), and say nothing of the data.
        """
        unit = qmc.Halton(self.dimension, scramble=False).random(1000)
        places = torch.from_numpy(self.low + (self.high - self.low) * unit).to(y_QD.device)
        polynomial = self._iterated(self._lattice._values(places), transposed=False)
        found = []
        for y in pieces(y_QD, len(places)):
            away = torch.cdist(y.double(), places, p=norm_of(self.kernel))
            truth = kernel_value(self.kernel, away, self.bandwidth)
            found.append((self._weights(y) @ polynomial.T - truth).abs().amax(1))
        return prepared["count"] * torch.cat(found)

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return kernel_sums(x_ND, y_QD, self.kernel, self.bandwidth)
