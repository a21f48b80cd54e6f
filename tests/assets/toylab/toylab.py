"""Small parts for the tests of the configuration; nothing here trains anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import system  # noqa: F401  (this and the next: what a hostile target would reach for)
from pathlib import Path  # noqa: F401
from shutil import rmtree  # noqa: F401
from typing import Annotated, Any, Literal

from fedsim.data.dataset import DataPart
from fedsim.errors import ConfigError
from fedsim.models.base import ModelPart
from fedsim.participation.base import ParticipationPart
from fedsim.partition.base import PartitionPart
from fedsim.parts import Part, Range

MADE: list[str] = []
"""Names of what `Tripwire` and `tripwire` were called with."""


@dataclass(frozen=True, kw_only=True)
class Data(DataPart):
    """Toy data.

    Attributes:
        size: How many samples,
            in all.
        root: Where they lie.
    """

    size: Annotated[int, Range(ge=1)] = 10
    root: str | None = None

    def load(self) -> Any:
        return self.size


@dataclass(frozen=True, kw_only=True)
class NeedsRoot(Data):
    """Toy data without a default folder."""

    folder: str


@dataclass(frozen=True, kw_only=True)
class Iid(PartitionPart):
    """Toy partition."""

    def split(self, dataset: Any, rng: Any) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Skewed(PartitionPart):
    """Toy partition with two fields that must agree."""

    alpha: Annotated[float, Range(gt=0)]
    low: int = 1
    high: int = 2
    weights: tuple[float, ...] = (1.0, 2.0)
    names: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ConfigError(f"low: {self.low} is above high, {self.high}")

    def split(self, dataset: Any, rng: Any) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Uniform(ParticipationPart):
    """Toy participation."""

    per_round: Annotated[int, Range(ge=1)] = 10

    def bind(self, population: Any) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Mlp(ModelPart):
    """Toy model, with a part inside."""

    hidden: tuple[Annotated[int, Range(ge=1)], ...] = (8,)
    activation: Any = None

    def build(self, dataset: Any) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Sgd(Part):
    """Toy client."""

    lr: Annotated[float, Range(gt=0)] = 0.1
    optimizer: Literal["sgd", "momentum"] = "sgd"
    decay: Annotated[float, Range(ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class NoPrivacy(Part):
    """Toy privacy: none."""


@dataclass(frozen=True, kw_only=True)
class Gaussian(Part):
    """Toy privacy."""

    sigma: Annotated[float, Range(gt=0)] = 1.0
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    accountant: Any = None


@dataclass(frozen=True, kw_only=True)
class Accountant(Part):
    """A part inside a part."""

    orders: list[int]


@dataclass(frozen=True, kw_only=True)
class Empty(Part):
    """Toy engine or topology."""

    chunk: int = 1


@dataclass(frozen=True, kw_only=True)
class Broken(Part):
    """A part whose construction fails."""

    def __post_init__(self) -> None:
        raise ZeroDivisionError("no reason")


class Tripwire:
    """An ordinary class that tells when it is made."""

    def __init__(self, x: int, *rest: Any, y: float = 2.0, make: Any = None) -> None:
        MADE.append("Tripwire")
        self.x, self.rest, self.y, self.make = x, rest, y, make


def tripwire(**anything: Any) -> dict[str, Any]:
    """A factory that takes any key."""
    MADE.append("tripwire")
    return anything


class _Private:
    """Not to be named."""
