"""A sum over records that answers similarity queries, and what one record can do to it.

    S = Σ_x φ(x) + noise            answer(y) = ⟨S, ψ(y)⟩ + n·offset(y)  ≈  Σ_x f(x, y)

φ and ψ are public, and n is taken as public under either neighbouring relation. All clients' sums
are integers (`fixed_point`), so S is the same whoever holds the records. Backurs, Lin, Mahabadi,
Silwal and Tarnawski 2024 (arXiv:2403.08917), "Efficiently Computing Similarities to Private
Datasets"; the summaries say where they differ.

A summary's fields are all public, and all that `to_json` writes. Frequencies and projections are
drawn from `seed`, before and whatever the data.

Shapes: N records, Q queries, D inputs, F numbers of a sum.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Part
from fedsim.protection.statement import Relation
from privacy.similarity.fixed_point import UNIT

Prepared = dict[str, Tensor]
"""What a noisy sum has been made into, once, so that queries are cheap."""

PIECE = 2**20
"""Numbers of features that are held at a time: about what a cache holds."""


@dataclass(frozen=True, kw_only=True)
class Summary(Part, abc.ABC):
    """One kind of sum, with its public parameters.

    Attributes:
        dimension: D.
    """

    distance: ClassVar[bool] = False
    """Whether a larger answer means less similar."""

    stacks: ClassVar[bool] = False
    """Whether sums `[F, C]` of C classes are answered together, `[Q, C]`, as one `[F]` is."""

    dimension: int

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """F."""

    @abc.abstractmethod
    def features(self, x_ND: Tensor) -> Tensor:
        """Return φ of each record in steps of UNIT, int64 `[N, F]`."""

    @abc.abstractmethod
    def l1(self, relation: Relation) -> float:
        """Return by how much one record moves S in L1, at most."""

    @abc.abstractmethod
    def l2(self, relation: Relation) -> float:
        """Return by how much one record moves S in L2, at most."""

    def prepare(self, sums_F: Tensor, count: float, deviation: float = 0.0) -> Prepared:
        """Return what queries need of a noisy sum of n records.

        Args:
            sums_F: S, float64.
            count: n.
            deviation: The standard deviation of the noise of a number of S.
        """
        return {"sums": sums_F, "count": torch.tensor(float(count)).to(sums_F)}

    @abc.abstractmethod
    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        """Return the answers ≈ Σ_x f(x, y), float64 `[Q]`."""

    @abc.abstractmethod
    def gain(self, y_QD: Tensor) -> Tensor:
        """Return ‖ψ(y)‖₂, `[Q]`: an answer's noise has this times the deviation of a number of S.

        An upper bound where the summary says so.
        """

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """Return an estimate, or a bound, of the answers' error without noise, `[Q]`."""
        return torch.zeros(len(y_QD), dtype=torch.float64, device=y_QD.device)

    @abc.abstractmethod
    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        """Return Σ_x f(x, y) by brute force: the truth, with no privacy, `[Q]`."""

    def coloured(self, white_F: Tensor) -> Tensor:
        """Return noise for S from independent numbers of unit deviation."""
        return white_F

    # --- what all share --------------------------------------------------------------------------

    def mean(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        """Return the answers per record, `[Q]` (or `[Q, C]` of C classes)."""
        return self.answer(prepared, y_QD) / prepared["count"]

    def errors(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
        """Return the means' standard deviation by noise, and their error apart from it."""
        count = prepared["count"]
        gain, apart = self.gain(y_QD), self.apart(prepared, y_QD, deviation)
        return gain * deviation / count, apart / count

    def sums(self, x_ND: Tensor) -> Tensor:
        """Return Σ_x φ(x), int64 `[F]`."""
        self.check(x_ND)
        total_F = torch.zeros(self.size, dtype=torch.int64, device=x_ND.device)
        for piece_ND in pieces(x_ND, self.size):
            total_F += self.features(piece_ND).sum(0)
        return total_F

    def check(self, x_ND: Tensor) -> None:
        """Check the shape of records or queries.

        Raises:
            ConfigError: It is another.
        """
        if x_ND.dim() != 2 or x_ND.shape[1] != self.dimension:
            raise ConfigError(
                f"{type(self).__name__} is of {self.dimension} inputs, received the shape "
                f"{list(x_ND.shape)}; give [number, {self.dimension}]"
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data, from which `kinds.from_json` makes the same summary."""
        values: dict[str, Any] = {"kind": type(self).__name__}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = value.to_json() if isinstance(value, Summary) else value
        return values

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Summary:
        """Make a summary of the fields that `to_json` wrote.

        Raises:
            ConfigError: They are others.
        """
        wanted = {field.name for field in dataclasses.fields(cls)}
        if set(values) != wanted:
            raise ConfigError(
                f"{cls.__name__} has the fields {sorted(wanted)}, received {sorted(values)}"
            )
        return cls(**values)


def pieces(x_ND: Tensor, size: int) -> Iterator[Tensor]:
    """Yield records some at a time, so that few features of theirs are held at once."""
    step = max(1, PIECE // max(1, size))
    for first in range(0, len(x_ND), step):
        yield x_ND[first : first + step]


def real(sums_F: Tensor) -> Tensor:
    """Return a sum in steps of UNIT as numbers, float64."""
    return sums_F.double() * UNIT


def event_norm(sensitivity: float, relation: Relation) -> float:
    """Return C for an event of `privacy.events`, which makes C or 2C of it by the relation."""
    return sensitivity / 2 if relation == "replace_one" else sensitivity


def check_finite(name: str, value: float) -> None:
    """Check that a number may scale others.

    Raises:
        ConfigError: It is not finite and positive.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}: {value!r}; allowed: (0, inf)")
