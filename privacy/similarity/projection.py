"""Random projections in front of another summary.

    l2       x -> G x / (β k),  β = √(2/π):  E‖·‖₁ of the image is ‖x‖₂; then L1 distances by a tree
    jl       x -> G x / √k: Johnson and Lindenstrauss; then any summary of L2 distances

G has iid standard normal entries drawn from a public seed, rounded so that products are exact
(`fixed_point`). One record's image goes into the inner sum, whatever it is, so that the inner
summary's sensitivities hold as they are.

For `l2`, with ‖x‖ ≤ R every coordinate of n images is within ±B, B = R√(2 ln(4nk))/(βk), but for a
chance of 1/(2...) that nothing rests on: what is beyond is clipped (`l2_bound`).

Shapes: N records, Q queries, D inputs, k of the image.

Differs from the paper (Backurs et al. 2024): nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary
from privacy.similarity.exact import pair_sums
from privacy.similarity.fixed_point import INPUT_BITS, matrix_steps, steps

BETA = math.sqrt(2 / math.pi)
"""E|g| of a standard normal g."""


def l2_bound(radius: float, size: int, records: int) -> float:
    """Return B: a coordinate of the image of one of n records is beyond with chance ≤ 1/(2n k)."""
    return radius * math.sqrt(2 * math.log(4 * records * size)) / (BETA * size)


@dataclass(frozen=True, kw_only=True)
class Projected(Summary):
    """Another summary, of records projected.

    Attributes:
        inner: The other; its dimension is k.
        law: `l2` or `jl`.
        bound: Coordinates of records are clipped to ±bound before.
        seed: Of G; public.
    """

    inner: Summary
    law: Literal["l2", "jl"] = "jl"
    bound: Annotated[float, Range(gt=0)] = 32.0
    seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.law == "l2" and (not self.inner.distance or getattr(self.inner, "power", 0) != 1):
            raise ConfigError(
                f"law: l2 turns L2 distances into L1 distances, which {type(self.inner).__name__} "
                "does not answer; use a Tree of power 1, or law=jl"
            )

    @property
    def distance(self) -> bool:  # type: ignore[override]
        """See `Summary.distance`: the inner one's."""
        return self.inner.distance

    @property
    def stacks(self) -> bool:  # type: ignore[override]
        """See `Summary.stacks`: the inner one's."""
        return self.inner.stacks

    @property
    def size(self) -> int:
        return self.inner.size

    @cached_property
    def _matrix(self) -> tuple[Tensor, float]:
        k = self.inner.dimension
        rng = seeds.rng(self.seed, 0, seeds.SERVER, "similarity-projection")
        scale = 1 / (BETA * k) if self.law == "l2" else 1 / math.sqrt(k)
        steps_Dk, unit = matrix_steps(
            torch.from_numpy(rng.standard_normal((self.dimension, k))) * scale
        )
        return steps_Dk, unit * self.bound / 2**INPUT_BITS

    def image(self, x_ND: Tensor) -> Tensor:
        """Return records projected, float64 `[N, k]`: the same bits, however they are batched."""
        self.check(x_ND)
        matrix, unit = self._matrix
        return (steps(x_ND, self.bound).double() @ matrix.to(x_ND.device)) * unit

    def features(self, x_ND: Tensor) -> Tensor:
        return self.inner.features(self.image(x_ND))

    def sums(self, x_ND: Tensor) -> Tensor:
        return self.inner.sums(self.image(x_ND))

    def l1(self, relation: Relation) -> float:
        return self.inner.l1(relation)

    def l2(self, relation: Relation) -> float:
        return self.inner.l2(relation)

    def prepare(self, sums_F: Tensor, count: float, deviation: float = 0.0) -> Prepared:
        return self.inner.prepare(sums_F, count, deviation)

    def coloured(self, white_F: Tensor) -> Tensor:
        return self.inner.coloured(white_F)

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        return self.inner.answer(prepared, self.image(y_QD))

    def gain(self, y_QD: Tensor) -> Tensor:
        return self.inner.gain(self.image(y_QD))

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """See `Summary.apart`: the inner one's; what the projection does is not in it."""
        return self.inner.apart(prepared, self.image(y_QD), deviation)

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        """See `Summary.exact`: of the records as they were before the projection."""
        if self.law == "l2":
            return pair_sums(x_ND, y_QD, 2, lambda away: away)
        return replace(self.inner, dimension=self.dimension).exact(x_ND, y_QD)
