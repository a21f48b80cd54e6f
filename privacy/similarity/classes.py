"""Classification by average similarity: one summary per class, released together.

    S = (Σ_{x of class c} φ(x))_c, (κ n_c)_c        label(y) = argmax_c of ⟨S_c, ψ(y)⟩ / n_c

or, where similarity is the inner product and rule = mean, the nearest class mean, argmax of
⟨μ_c, y⟩ − ‖μ_c‖²/2 with μ_c = S_c/n_c (less what noise adds to ‖μ_c‖², which is public).
Backurs et al. 2024 (arXiv:2403.08917), §5.

Sensitivity. Let one record move the inner sum by a (add/remove) and r (replace). A replaced record
of the same class moves its class by r and no count; one of another class moves two classes by a and
two counts by κ:
    L2² ≤ a² + κ²  (add/remove)      L2² ≤ max(r², 2a² + 2κ²)  (replace)
    L1  ≤ a₁ + κ                     L1  ≤ max(r₁, 2a₁ + 2κ)
With r = 2a, κ = a costs nothing in L2: the counts come free. Else κ = a/2, which costs the sums
what an 80/20 split of the budget would.

Shapes: N records, Q queries, D inputs, C classes. A record's last number is its class.

Differs from the paper: sums and counts are one vector under one noise, not two releases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary
from privacy.similarity.fixed_point import UNIT, widened
from privacy.similarity.moments import InnerProduct


def labelled(x_ND: Tensor, label_N: Tensor) -> Tensor:
    """Return records with their class as the last number, float64."""
    return torch.cat([x_ND.double(), label_N.double()[:, None]], 1)


@dataclass(frozen=True, kw_only=True)
class PerClass(Summary):
    """One summary per class.

    Attributes:
        dimension: D + 1, with the class.
        inner: The summary of each class; of D inputs.
        classes: C.
        rule: See this file's header.
        relation: The one that κ is chosen for.
    """

    inner: Summary
    classes: Annotated[int, Range(ge=2, le=10000)]
    rule: Literal["similarity", "mean"] = "similarity"
    relation: Relation = "replace_one"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension != self.inner.dimension + 1:
            raise ConfigError(
                f"dimension: {self.dimension}; the inner summary has {self.inner.dimension} "
                f"inputs, so set {self.inner.dimension + 1}"
            )
        if self.rule == "mean" and not isinstance(self.inner, InnerProduct):
            raise ConfigError(
                f"rule: mean is for inner products, and this is {type(self.inner).__name__}; use "
                "rule=similarity"
            )

    @property
    def size(self) -> int:
        return self.classes * (self.inner.size + 1)

    @property
    def weight(self) -> float:
        """κ, a multiple of UNIT."""
        a, r = self.inner.l2("add_remove"), self.inner.l2("replace_one")
        free = (r**2 - 2 * a**2) / 2
        if self.relation == "add_remove" or free < a**2 / 4:
            free = a**2 / 4
        return math.floor(math.sqrt(free) / UNIT) * UNIT

    def _classes(self, x_NE: Tensor) -> Tensor:
        label_N = torch.nan_to_num(x_NE[:, -1].double()).long()
        return label_N.clamp(0, self.classes - 1)

    def features(self, x_ND: Tensor) -> Tensor:
        return torch.stack([self.sums(x_D[None]) for x_D in x_ND])

    def sums(self, x_ND: Tensor) -> Tensor:
        self.check(x_ND)
        label_N = self._classes(x_ND)
        inner = [self.inner.sums(x_ND[label_N == c, :-1]) for c in range(self.classes)]
        counts = torch.bincount(label_N, minlength=self.classes) * round(self.weight / UNIT)
        return torch.cat([*inner, counts])

    def l1(self, relation: Relation) -> float:
        a, r = self.inner.l1("add_remove"), self.inner.l1("replace_one")
        if relation == "add_remove":
            return a + self.weight
        return widened(max(r, 2 * a + 2 * self.weight), self.size, 1)

    def l2(self, relation: Relation) -> float:
        a, r = self.inner.l2("add_remove"), self.inner.l2("replace_one")
        if relation == "add_remove":
            return math.sqrt(a**2 + self.weight**2)
        return widened(max(r, math.sqrt(2 * a**2 + 2 * self.weight**2)), self.size, 2)

    def prepare(self, sums_F: Tensor, count: float, deviation: float = 0.0) -> Prepared:
        """Return each class's sums, prepared, and its count; at least 1."""
        split = self.classes * self.inner.size
        counts_C = (sums_F[split:] / self.weight).clamp(min=1)
        found: Prepared = {"counts": counts_C, "count": torch.tensor(float(count)).to(sums_F)}
        rows = sums_F[:split].view(self.classes, -1)
        if self.inner.stacks:
            prepared = self.inner.prepare(rows.T.contiguous(), count, deviation)
            found |= {f"all/{name}": value for name, value in prepared.items()}
            square_C = (rows.square().sum(1) - self.inner.size * deviation**2).clamp(min=0)
            found["norms"] = square_C / counts_C.square()
            return found
        for c, row in enumerate(rows):
            prepared = self.inner.prepare(row, float(counts_C[c]), deviation)
            found |= {f"{c}/{name}": value for name, value in prepared.items()}
        return found

    @staticmethod
    def _of(prepared: Prepared, key: str) -> Prepared:
        start = f"{key}/"
        return {k.removeprefix(start): v for k, v in prepared.items() if k.startswith(start)}

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        """Return Σ of each class, `[Q, C]`; queries have D inputs, and no class."""
        if self.inner.stacks:
            return self.inner.answer(self._of(prepared, "all"), y_QD)
        return torch.stack(
            [self.inner.answer(self._of(prepared, str(c)), y_QD) for c in range(self.classes)], 1
        )

    def mean(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        """See `Summary.mean`: of each class, over its own records, `[Q, C]`."""
        return self.answer(prepared, y_QD) / prepared["counts"]

    def errors(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
        """See `Summary.errors`; the noise of the counts, which is smaller, is left out."""
        counts = prepared["counts"]
        noise_QC = self.gain(y_QD)[:, None] * deviation / counts
        apart = []
        for c in range(self.classes):
            if self.inner.stacks:
                own = self._of(prepared, "all")
                own = {**own, "sums": own["sums"][:, c]}
            else:
                own = self._of(prepared, str(c))
            apart.append(self.inner.apart(own, y_QD, deviation))
        return noise_QC, torch.stack(apart, 1) / counts

    def labels(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        """Return the class of each query, int64 `[Q]`."""
        means_QC = self.mean(prepared, y_QD)
        if self.rule == "mean":
            means_QC = means_QC - prepared["norms"] * self.inner_radius**2 / 2
        return means_QC.argmin(1) if self.inner.distance else means_QC.argmax(1)

    @property
    def inner_radius(self) -> float:
        """R of an inner product: its sums are in units of it."""
        return float(getattr(self.inner, "radius", 1.0))

    def gain(self, y_QD: Tensor) -> Tensor:
        return self.inner.gain(y_QD)

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        label_N = self._classes(x_ND)
        return torch.stack(
            [self.inner.exact(x_ND[label_N == c, :-1], y_QD) for c in range(self.classes)], 1
        )
