"""How a draw selects: what a sampler says of itself, and all that an accountant believes.

A privacy claim holds for the sampling that took place, not for the one that was meant: so whoever
draws (clients of a round, samples of a batch) states its own law, and nobody else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range


@dataclass(frozen=True, kw_only=True)
class Poisson(Part):
    """Every unit tosses a coin of its own; how many are drawn varies, and may be none.

    Attributes:
        rate: q, public.
    """

    rate: Annotated[float, Range(ge=0, le=1)]

    def __str__(self) -> str:
        return f"Poisson sampling at rate {self.rate:.4g}"


@dataclass(frozen=True, kw_only=True)
class FixedSize(Part):
    """A uniformly random set of fixed size, without replacement.

    Attributes:
        size: m.
        population: N, public.
    """

    size: Annotated[int, Range(ge=1)]
    population: Annotated[int, Range(ge=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size > self.population:
            raise ConfigError(
                f"size: {self.size} of a population of {self.population} cannot be drawn without "
                f"replacement; allowed: 1 to {self.population}"
            )

    def __str__(self) -> str:
        return f"{self.size} of {self.population} at a time, without replacement"


@dataclass(frozen=True, kw_only=True)
class Unsampled(Part):
    """All units, or a choice that the adversary knows: nothing is gained from sampling."""

    def __str__(self) -> str:
        return "no sampling"


Sampling = Poisson | FixedSize | Unsampled
