"""Baseline: locality-sensitive quantisation with the fast Gauss transform (LSQ-FGT).

Wagner, Naaman and Mishra 2023 ("Fast Private Kernel Density Estimation via Locality Sensitive
Quantization", ICML 2023), for exp(−‖z‖²/σ²) in few dimensions. Space is cut into unit cells
(units of σ) with centres c; with r = x − c, |r_d| ≤ 1/2, and t = y − c,

    S[c, j] = Σ_{x in cell} Π_d r_d^(j_d),  j_d < ρ
    answer  = Σ_c Σ_j S[c, j] Π_d h_{j_d}(t_d)/j_d!        h_j(t) = H_j(t) e^{−t²} (Hermite)

over cells whose centre is within squared distance ρ + D/4 of y; ρ = Θ(log εn).

Sensitivity: one record has features in one cell, Σ_j Π|r_d|^(j_d) ≤ (Σ_j 2^−j)^D =
(2 − 2^(1−ρ))^D in L1, and (Σ_j 4^−j)^(D/2) ≤ (4/3)^(D/2) in L2. Replacing: two such vectors,
twice that.

Shapes: N records, Q queries, D inputs, C = cells^D, F = C ρ^D.

Differs from the paper: all cells of a box are released, with noise in the empty ones, since which
cells are empty is private.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary, pieces
from privacy.similarity.exact import kernel_sums
from privacy.similarity.fixed_point import units


@dataclass(frozen=True, kw_only=True)
class LSQ(Summary):
    """Monomials of the residuals in every cell.

    Attributes:
        bandwidth: σ.
        order: ρ.
        low, high: The box, whose records are clipped to it.
    """

    bandwidth: Annotated[float, Range(gt=0)] = 1.0
    order: Annotated[int, Range(ge=1, le=12)] = 4
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"low: {self.low!r} is not below high: {self.high!r}")
        if self.dimension > 6 or self.size > 2**24:
            raise ConfigError(
                f"dimension: {self.dimension} takes {self.cells}^{self.dimension} cells of "
                f"{self.order}^{self.dimension} numbers; allowed: 6 dimensions and 2^24 numbers; "
                "use random features"
            )

    @property
    def cells(self) -> int:
        """Cells along each axis."""
        return max(1, math.ceil((self.high - self.low) / self.bandwidth))

    @property
    def size(self) -> int:
        return int((self.cells * self.order) ** self.dimension)

    def _monomials(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return each record's cell, `[N]`, and its monomials, `[N, ρ^D]`."""
        scaled = torch.nan_to_num(x_ND.double(), nan=self.low).clamp(self.low, self.high)
        scaled = (scaled - self.low) / self.bandwidth
        cell_ND = scaled.floor().clamp(0, self.cells - 1)
        residual_ND = (scaled - cell_ND - 0.5).clamp(-0.5, 0.5)
        powers = torch.stack([residual_ND**j for j in range(self.order)], 2)  # [N, D, ρ]
        product = powers[:, 0]
        index = cell_ND[:, 0]
        for d in range(1, self.dimension):
            product = (product[:, :, None] * powers[:, d, None]).flatten(1)
            index = index * self.cells + cell_ND[:, d]
        return index.long(), units(product)

    def features(self, x_ND: Tensor) -> Tensor:
        return torch.stack([self.sums(x_D[None]) for x_D in x_ND])

    def sums(self, x_ND: Tensor) -> Tensor:
        self.check(x_ND)
        shape = (self.cells**self.dimension, self.order**self.dimension)
        total = torch.zeros(shape, dtype=torch.int64, device=x_ND.device)
        for piece in pieces(x_ND, self.order**self.dimension):
            index, product = self._monomials(piece)
            total.index_add_(0, index, product)
        return total.flatten()

    def l1(self, relation: Relation) -> float:
        one = float((2 - 2.0 ** (1 - self.order)) ** self.dimension)
        return one if relation == "add_remove" else 2 * one

    def l2(self, relation: Relation) -> float:
        one = ((1 - 0.25**self.order) / 0.75) ** (self.dimension / 2)
        found: float = one if relation == "add_remove" else 2 * one
        return found

    def _seen(self, y_QD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pairs of a query and a cell within squared distance ρ + D/4 of it.

        P pairs: the query of each, `[P]`, the cell, `[P]`, and ψ there, `[P, ρ^D]`.
        """
        scaled = (y_QD.double() - self.low) / self.bandwidth
        square = self.order + self.dimension / 4
        reach = math.sqrt(square)
        along = torch.arange(math.floor(2 * reach) + 1, device=y_QD.device)
        cell_QDS = (scaled - 0.5 - reach).ceil()[:, :, None] + along
        t_QDS = scaled[:, :, None] - cell_QDS - 0.5
        away = t_QDS.square().masked_fill((cell_QDS < 0) | (cell_QDS >= self.cells), math.inf)
        total = away[:, 0]
        for d in range(1, self.dimension):
            total = (total[:, :, None] + away[:, d, None]).flatten(1)
        query_P, box_P = (total <= square).nonzero(as_tuple=True)
        hermite = self._hermite(t_QDS)
        index_P, weights = torch.zeros_like(query_P), torch.ones_like(t_QDS[query_P, 0, :1])
        for d in range(self.dimension):
            place = box_P // len(along) ** (self.dimension - 1 - d) % len(along)
            index_P = index_P * self.cells + cell_QDS[query_P, d, place].long()
            weights = (weights[:, :, None] * hermite[query_P, d, place][:, None]).flatten(1)
        return query_P, index_P, weights

    def _hermite(self, t: Tensor) -> Tensor:
        """Return h_j(t)/j! for all orders, last."""
        hermite = [torch.ones_like(t), 2 * t]
        for j in range(1, self.order):
            hermite.append(2 * t * hermite[-1] - 2 * j * hermite[-2])
        found = [h / math.factorial(j) for j, h in enumerate(hermite[: self.order])]
        return torch.stack(found, -1) * (-t.square()).exp()[..., None]

    def _batches(self, y_QD: Tensor) -> Iterator[Tensor]:
        side = 2 * math.sqrt(self.order + self.dimension / 4) + 1
        return pieces(y_QD, int((side * self.order) ** self.dimension))

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        sums = prepared["sums"].view(-1, self.order**self.dimension)
        found = []
        for y in self._batches(y_QD):
            query_P, index_P, weights = self._seen(y)
            terms_P = (sums[index_P] * weights).sum(1)
            found.append(terms_P.new_zeros(len(y)).index_add_(0, query_P, terms_P))
        return torch.cat(found)

    def gain(self, y_QD: Tensor) -> Tensor:
        found = []
        for y in self._batches(y_QD):
            query_P, _, weights = self._seen(y)
            square_P = weights.square().sum(1)
            found.append(square_P.new_zeros(len(y)).index_add_(0, query_P, square_P).sqrt())
        return torch.cat(found)

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """See `Summary.apart`: a bound, the same for all queries.

        A record of a cell that is left out has at most exp(−(√(ρ + D/4) − √D/2)²); in others an
        axis errs by e ≤ 1.0865 Σ_{j≥ρ} 2^(−j/2)/√j! (Cramér: |h_j(t)| ≤ 1.0865 √(2^j j!) e^(−t²/2),
        |r| ≤ 1/2), and D factors of at most 1 by (1 + e)^D − 1 together.
        """
        tail = sum(2 ** (-j / 2) / math.sqrt(math.factorial(j)) for j in range(self.order, 60))
        cut = (1 + 1.0865 * tail) ** self.dimension - 1
        reach = math.sqrt(self.order + self.dimension / 4) - math.sqrt(self.dimension) / 2
        one = max(cut, math.exp(-(reach**2)))
        return (prepared["count"] * one).expand(len(y_QD))

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return kernel_sums(x_ND.double().clamp(self.low, self.high), y_QD, "gaussian",
                           self.bandwidth)  # fmt: skip


def order_for(epsilon: float, records: int) -> int:
    """Return ρ = Θ(log εn): the series is cut where its error is below the noise's.

    Example:
        >>> order_for(1.0, 8000)
        9
    """
    return min(12, max(2, math.ceil(math.log(max(2.0, epsilon * records)))))
