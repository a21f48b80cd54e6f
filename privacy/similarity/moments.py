"""Sums of inner products, squared L2 distances and even powers, by sums of powers.

    inner product   φ = x/R                  Σ⟨x, y⟩ = R ⟨S, y⟩
    ‖x − y‖²        φ = (x/R, ‖x/R‖²)        R²(S_2 − 2⟨S_1, y/R⟩ + n‖y/R‖²)          ‖x‖ ≤ R
    ‖x − y‖_p^p     φ = (u, u², ..., u^p)    R^p Σ_d Σ_j C(p, j) (−v_d)^(p−j) S_jd    u = x_d/R

with v = y/R, p even and |x_d| ≤ R (records beyond are pulled in). No error but the noise.

Sensitivity, u = ‖x‖/R and v = ‖x'‖/R in [0, 1].
    inner product: ‖φ‖ ≤ 1, so L2 ≤ 1 (add/remove), 2 (replace); L1 ≤ √D times as much.
    squared: against replacing one, for opposite x and x', the squared L2 is
        (u + v)² + (u² − v²)² = (u + v)²(1 + (u − v)²), growing in the larger of the two; with that
        one at 1 it is (1 + v)²(1 + (1 − v)²) ≤ 4. So L2 ≤ 2. L1 ≤ √D(1 + v) + 1 − v², largest at
        v = min(1, √D/2): 2√D for D ≥ 4, else (1 + √D/2)². Add/remove: √2, and √D + 1.
    powers, each coordinate, each pair (j, j + 1) with j odd: put a = |u|^j, b = |v|^j, and
        s = (j + 1)/j in (1, 2]. Signs differ: (a + b)² + (a^s − b^s)² grows in the larger; with
        that one at 1 it is at most (1 + b)² + (1 − b²)² ≤ 4, and a + b + |a^s − b^s| at most
        2 + b − b² ≤ 9/4. Signs agree: ≤ 2, and ≤ 2. With p/2 pairs, D coordinates: L2 ≤ √(2 D p),
        L1 ≤ 9 D p / 8. Add/remove: √(D p) and D p.

Shapes: N records, Q queries, D inputs.

Differs from the paper (Backurs et al. 2024): the moments of ‖x − y‖² are released as one vector.
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
from privacy.similarity.exact import pair_sums, power_sums
from privacy.similarity.fixed_point import INPUT_BITS, UNIT, steps, units, widened

_FAR = 4
"""Coordinates are cut at 2^4 R before a record is pulled into the ball: so squares fit."""


def into_ball(x_ND: Tensor, radius: float) -> Tensor:
    """Return records in the ball in steps of radius / 2^20, int64, of norm ≤ 2^20."""
    far_ND = steps(x_ND, radius * 2**_FAR, INPUT_BITS + _FAR)
    norm_N = far_ND.square().sum(1).double().sqrt()
    factor_N = (2.0**INPUT_BITS * (1 - 2.0**-40) / norm_N.clamp(min=1)).clamp(max=1)
    return (far_ND * factor_N[:, None]).long()


def _ball_steps_to_units(x_ND: Tensor) -> Tensor:
    return x_ND * round(2.0**-INPUT_BITS / UNIT)


@dataclass(frozen=True, kw_only=True)
class InnerProduct(Summary):
    """Sums of vectors: similarity is the inner product.

    Attributes:
        radius: R.
    """

    stacks: ClassVar[bool] = True

    radius: Annotated[float, Range(gt=0)] = 1.0

    @property
    def size(self) -> int:
        return self.dimension

    def features(self, x_ND: Tensor) -> Tensor:
        return _ball_steps_to_units(into_ball(x_ND, self.radius))

    def l1(self, relation: Relation) -> float:
        return math.sqrt(self.dimension) * self.l2(relation)

    def l2(self, relation: Relation) -> float:
        return 1.0 if relation == "add_remove" else 2.0

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        return y_QD.double() @ prepared["sums"] * self.radius

    def gain(self, y_QD: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(y_QD.double(), dim=1) * self.radius
        return found

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        inside = into_ball(x_ND, self.radius).double() * (self.radius / 2**INPUT_BITS)
        found: Tensor = y_QD.double() @ inside.sum(0)
        return found


@dataclass(frozen=True, kw_only=True)
class SquaredDistance(Summary):
    """First and second moments: squared L2 distance.

    Attributes:
        radius: R.
    """

    distance: ClassVar[bool] = True

    radius: Annotated[float, Range(gt=0)] = 1.0

    @property
    def size(self) -> int:
        return self.dimension + 1

    def features(self, x_ND: Tensor) -> Tensor:
        inside = into_ball(x_ND, self.radius)
        square = inside.square().sum(1, keepdim=True)
        return torch.cat([_ball_steps_to_units(inside), square >> (2 * INPUT_BITS - 30)], 1)

    def l1(self, relation: Relation) -> float:
        root = math.sqrt(self.dimension)
        if relation == "add_remove":
            return root + 1
        return widened(2 * root if self.dimension >= 4 else (1 + root / 2) ** 2, self.size, 1)

    def l2(self, relation: Relation) -> float:
        return math.sqrt(2) if relation == "add_remove" else widened(2.0, self.size, 2)

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        y = y_QD.double() / self.radius
        sums = prepared["sums"]
        value = sums[-1] - 2 * y @ sums[:-1] + prepared["count"] * y.square().sum(1)
        return value * self.radius**2

    def gain(self, y_QD: Tensor) -> Tensor:
        square = (y_QD.double() / self.radius).square().sum(1)
        return torch.sqrt(1 + 4 * square) * self.radius**2

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        inside = into_ball(x_ND, self.radius).double() * (self.radius / 2**INPUT_BITS)
        return pair_sums(inside, y_QD, 2, Tensor.square)


@dataclass(frozen=True, kw_only=True)
class EvenPower(Summary):
    """Moments of each coordinate up to an even p.

    Attributes:
        radius: R.
        power: p.
    """

    distance: ClassVar[bool] = True

    radius: Annotated[float, Range(gt=0)] = 1.0
    power: Annotated[int, Range(ge=2, le=8)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power % 2:
            raise ConfigError(f"power: {self.power} is odd; for odd powers use the tree")

    @property
    def size(self) -> int:
        return self.dimension * self.power

    def _inside(self, x_ND: Tensor) -> Tensor:
        return steps(x_ND, self.radius).double() * 2.0**-INPUT_BITS

    def features(self, x_ND: Tensor) -> Tensor:
        u_ND = self._inside(x_ND)
        powers = [u_ND]
        for _ in range(self.power - 1):
            powers.append(powers[-1] * u_ND)
        return units(torch.cat(powers, 1))

    def l1(self, relation: Relation) -> float:
        if relation == "add_remove":
            return float(self.size)
        return widened(9 * self.size / 8, self.size, 1)

    def l2(self, relation: Relation) -> float:
        if relation == "add_remove":
            return math.sqrt(self.size)
        return widened(math.sqrt(2 * self.size), self.size, 2)

    def _weights(self, y_QD: Tensor) -> Tensor:
        v, p = y_QD.double() / self.radius, self.power
        terms = [math.comb(p, j) * (-v) ** (p - j) for j in range(1, p + 1)]
        return torch.cat(terms, 1) * self.radius**p

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        offset = y_QD.double().pow(self.power).sum(1)
        return self._weights(y_QD) @ prepared["sums"] + prepared["count"] * offset

    def gain(self, y_QD: Tensor) -> Tensor:
        found: Tensor = self._weights(y_QD).norm(dim=1)
        return found

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return power_sums(self._inside(x_ND) * self.radius, y_QD, self.power)
