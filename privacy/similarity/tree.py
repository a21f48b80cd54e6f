"""Sums of L1 distances, and of p-th powers of them, by noisy dyadic counts.

Backurs et al. 2024 (arXiv:2403.08917), Algorithms 1-2: per dimension, [low, high] is cut into
M = 2^h leaves, and the counts of the nodes of the dyadic tree over them are released.

    C[j]   = records in leaves < j, from the left children alone: walking down from the root,
             C_l[2j] = C_{l-1}[j],  C_l[2j+1] = C_{l-1}[j] + left_l[j]
    answer = Σ_d Σ_j (C[j+1] − C[j]) · mean of |t − y_d|^p over leaf j

The mean over a leaf is a polynomial, so with cumulative moments of the leaves a query takes one
look-up and p + 1 terms per dimension, whatever M. The error without noise is at most half a leaf's
width a record and dimension (p = 1).

Sensitivity. Of the h levels below the root, which n makes public, a record touches at most one left
child per level: L1 ≤ D h and L2 ≤ √(D h) against adding or removing one. Against replacing one:
level 1 has one left child, which two records either share or not, so it moves by at most 1; at each
other level two left children may change by 1: per dimension L1 ≤ 2h − 1 and L2 ≤ √(2h − 1).

Noise of an answer, p = 1. A left child of level l, of width w_l = R 2^-l, is in C at the grid
points of its sibling. Between grid points C is linear, so the answer ∫_{<y} C + ∫_{>y} (n − C)
weighs it with ±w_l unless y is within that window: ‖ψ‖² ≤ Σ_l 2^(l-1) w_l² < R²/2 per dimension.
Every p of the same sum can be asked for: the counts are those.

Differs from the paper: no α. `published` is its query, which rounds distances up to powers of
1 + α. Only left children are released, half as many numbers; the paper has all nodes, the root
too. Odd powers need no sums of powers in the nodes, and no further noise.

Shapes: N records, Q queries, D dimensions, M leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary
from privacy.similarity.exact import power_sums
from privacy.similarity.fixed_point import UNIT

ONE = round(1 / UNIT)


@dataclass(frozen=True, kw_only=True)
class Tree(Summary):
    """Dyadic counts of every dimension.

    Attributes:
        depth: h; M = 2^h leaves.
        low, high: The range of every coordinate, which is clipped to it.
        power: p.
    """

    distance: ClassVar[bool] = True

    depth: Annotated[int, Range(ge=1, le=24)]
    low: float = 0.0
    high: float = 1.0
    power: Annotated[int, Range(ge=1, le=8)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(
                f"low: {self.low!r} and high: {self.high!r} are no range; allowed: low < high"
            )
        if self.size > 2**28:
            raise ConfigError(
                f"depth: {self.depth} takes {self.size} counts for {self.dimension} dimensions; "
                "allowed: 2^28 of them; lower the depth, or project the data to fewer dimensions"
            )

    @property
    def width(self) -> float:
        """R."""
        return self.high - self.low

    @property
    def leaves(self) -> int:
        """M."""
        return int(2**self.depth)

    @property
    def size(self) -> int:
        return self.dimension * (self.leaves - 1)

    def leaf(self, x_ND: Tensor) -> Tensor:
        """Return the leaf of each coordinate, int64."""
        share = (torch.nan_to_num(x_ND.double(), nan=self.low) - self.low) / self.width
        return (share * self.leaves).clamp(0, self.leaves - 1).long()

    def features(self, x_ND: Tensor) -> Tensor:
        return torch.stack([self.sums(x_D[None]) for x_D in x_ND])

    def sums(self, x_ND: Tensor) -> Tensor:
        self.check(x_ND)
        leaf_ND = self.leaf(x_ND) + self.leaves * torch.arange(self.dimension, device=x_ND.device)
        counts = torch.bincount(leaf_ND.flatten(), minlength=self.dimension * self.leaves)
        nodes, levels = counts.view(self.dimension, self.leaves), []
        for _ in range(self.depth):
            pairs = nodes.view(self.dimension, -1, 2)
            levels.append(pairs[:, :, 0])
            nodes = pairs.sum(2)
        return torch.cat(levels[::-1], 1).flatten() * ONE

    def l1(self, relation: Relation) -> float:
        return float(self._touched(relation))

    def l2(self, relation: Relation) -> float:
        return math.sqrt(self._touched(relation))

    def _touched(self, relation: Relation) -> int:
        levels = self.depth if relation == "add_remove" else 2 * self.depth - 1
        return self.dimension * levels

    def below(self, sums_F: Tensor, count: float) -> Tensor:
        """Return C at the grid points, `[D, M + 1]`."""
        left_DF = sums_F.view(self.dimension, -1)
        below = torch.zeros(self.dimension, 1, dtype=torch.float64, device=sums_F.device)
        for level in range(self.depth):
            left = left_DF[:, 2**level - 1 : 2 ** (level + 1) - 1]
            below = torch.stack([below, below + left], 2).flatten(1)
        return torch.cat([below, torch.full_like(below[:, :1], float(count))], 1)

    def prepare(self, sums_F: Tensor, count: float, deviation: float = 0.0) -> Prepared:
        """Return C, and the cumulative moments of the leaves up to the power p."""
        below = self.below(sums_F, count)
        edges = self._edges(sums_F.device)
        mass, moments = below.diff(dim=1), []
        for i in range(self.power + 1):
            mean_M = (edges[1:] ** (i + 1) - edges[:-1] ** (i + 1)) / ((i + 1) * edges.diff())
            moments.append(torch.nn.functional.pad((mass * mean_M).cumsum(1), (1, 0)))
        return {
            "below": below,
            "moments": torch.stack(moments, 2),
            "count": torch.tensor(float(count)).to(below),
        }

    def _edges(self, device: torch.device) -> Tensor:
        """Return the grid points in units of R/2 around the middle, where powers stay small."""
        return torch.linspace(-1, 1, self.leaves + 1, dtype=torch.float64, device=device)

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        half, p = self.width / 2, self.power
        y = ((y_QD.double() - self.low) / half - 1).clamp(-1, 1)
        beyond = (y_QD.double() - self.low) / half - 1
        cell = self.leaf(y_QD)
        across = torch.arange(self.dimension, device=y_QD.device)
        edges, below, moments = self._edges(y_QD.device), prepared["below"], prepared["moments"]
        to = moments[across, cell]  # [Q, D, p + 1]
        whole = moments[:, -1]
        after = whole - moments[across, cell + 1]
        total = torch.zeros_like(y)
        for i in range(p + 1):
            term = math.comb(p, i) * beyond ** (p - i)
            total += term * (-1) ** i * to[..., i] + term * (-1) ** (p - i) * after[..., i]
        a, b = edges[cell], edges[cell + 1]
        own = below[across, cell + 1] - below[across, cell]
        inside = (y - a) ** (p + 1) + (b - y) ** (p + 1)
        # A query outside the range sees its leaf whole, on one side.
        outer = ((beyond - a).abs() ** (p + 1) - (beyond - b).abs() ** (p + 1)).abs()
        mean = torch.where(beyond == y, inside, outer) / ((p + 1) * (b - a))
        return (total + own * mean).sum(1) * half**p

    def gain(self, y_QD: Tensor) -> Tensor:
        """See `Summary.gain`; exact within the range for p = 1, an upper bound otherwise."""
        y = (y_QD.double() - self.low).clamp(0, self.width)
        leaf = self.width / self.leaves
        square = torch.zeros_like(y)
        for level in range(1, self.depth + 1):
            wide = self.width / 2**level
            # The window of the left child: up over a leaf, flat, down over a leaf.
            at = (y - (wide - leaf)).remainder(2 * wide)
            up, down = at.clamp(max=leaf), (at - wide).clamp(0, leaf)
            area = up**2 / (2 * leaf) + (at.clamp(leaf, wide) - leaf)
            area = area + down - down**2 / (2 * leaf)
            square += (2 ** (level - 1) - 1) * wide**2 + (2 * area - wide) ** 2
        if self.power > 1:
            # |weight| ≤ p·(largest distance)^(p−1)·(width of the node), summed over all nodes.
            y = y_QD.double() - self.low
            far = torch.maximum(y.abs(), (self.width - y).abs())
            full = self.width**2 / 2 * (1 - 2.0**-self.depth)
            square = (self.power * far ** (self.power - 1)) ** 2 * full
        return square.sum(1).sqrt()

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """See `Summary.apart`: half a leaf a record and dimension, at the steepest."""
        far = torch.maximum(
            (y_QD.double() - self.low).abs(), (y_QD.double() - self.high).abs()
        ) ** (self.power - 1)
        width = self.width / self.leaves
        return prepared["count"] * self.power * far.sum(1) * width / 2

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return power_sums(x_ND.double().clamp(self.low, self.high), y_QD, self.power)

    def published(self, prepared: Prepared, y_QD: Tensor, alpha: float) -> Tensor:
        """Return the paper's answers: in [1, 1 + α] times the truth on the grid, without noise.

        Records and queries stand at the left ends of their leaves; a distance of (M/(1+α)^(j+1),
        M/(1+α)^j] leaves counts as M/(1+α)^j.
        """
        if not 0 < alpha < math.inf or self.power != 1:
            raise ConfigError(
                f"alpha: {alpha!r} with power {self.power}; allowed: alpha > 0 with power 1"
            )
        below, cell = prepared["below"], self.leaf(y_QD)
        across = torch.arange(self.dimension, device=y_QD.device)

        def count(first: Tensor, last: Tensor) -> Tensor:
            first, last = first.clamp(0, self.leaves), last.clamp(0, self.leaves)
            return below[across, last] - below[across, first]

        total = torch.zeros(cell.shape, dtype=torch.float64, device=y_QD.device)
        reach = float(self.leaves)
        while reach >= 1:
            near, far = math.floor(reach / (1 + alpha)), math.floor(reach)
            ring = count(cell + near + 1, cell + far + 1) + count(cell - far, cell - near)
            total += reach * ring
            reach /= 1 + alpha
        return total.sum(1) * self.width / self.leaves
