"""What a private release did: the events that a ledger holds and the accountant composes.

An event is written to the run's ledger before the release that it describes, so it is plain data
with a JSON form, and that form never changes its meaning: a new mechanism gets a new class.

    event = count releases, each: draw a sample of the units, sum their bounded contributions,
            add the mechanism's noise

Everything is relative to ONE unit's contribution to the sum, whose norm is at most C. What the sum
can change by follows from the neighbouring relation, and the accountant draws that conclusion:
`add_remove` C, `replace_one` 2C. An event therefore holds the same numbers under either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from fedsim.errors import ConfigError, did_you_mean
from fedsim.participation.sampling import FixedSize, Poisson, Sampling, Unsampled
from fedsim.parts import Part, Range
from fedsim.protection.statement import Relation

__all__ = [
    "DiscreteGaussian",
    "Event",
    "FixedSize",
    "Gaussian",
    "Laplace",
    "Mechanism",
    "Poisson",
    "PureDP",
    "Relation",
    "Sampling",
    "Skellam",
    "Unit",
    "Unsampled",
]

Unit = Literal["example", "user", "label", "report"]
"""Whose contribution is hidden."""


@dataclass(frozen=True, kw_only=True)
class Gaussian(Part):
    """Gaussian noise on a sum of vectors of L2 norm at most C.

    Args:
        noise_multiplier: z = standard deviation / C. 0 is a release without noise: epsilon = inf.
    """

    noise_multiplier: Annotated[float, Range(ge=0, lt=float("inf"))]


@dataclass(frozen=True, kw_only=True)
class Laplace(Part):
    """Laplace noise on each coordinate of a sum of vectors of L1 norm at most C.

    Args:
        scale: Scale of the noise / C. 0 is a release without noise: epsilon = inf.
    """

    scale: Annotated[float, Range(ge=0, lt=float("inf"))]


@dataclass(frozen=True, kw_only=True)
class PureDP(Part):
    """Any mechanism that is `epsilon`-DP, delta = 0: randomised response, exponential, ...

    Args:
        epsilon: Under the relation with which the event is accounted (this is the one mechanism
            whose guarantee the accountant cannot derive, so it is not doubled for `replace_one`).
    """

    epsilon: Annotated[float, Range(ge=0, lt=float("inf"))]


@dataclass(frozen=True, kw_only=True)
class Skellam(Part):
    """Skellam noise on each coordinate of a sum of integer vectors; see `accounting/discrete.py`.

    All three in the units of the integers, after scaling and rounding, and after summing the
    noise of the clients that are certain to answer (the Skellam law is closed under sums).

    Args:
        variance: mu, of the total noise on one coordinate: the difference of two Poisson(mu / 2).
        l1_norm: Largest L1 norm of one unit's integer vector.
        l2_norm: Largest L2 norm of one unit's integer vector.
    """

    variance: Annotated[float, Range(ge=0, lt=float("inf"))]
    l1_norm: Annotated[float, Range(gt=0, lt=float("inf"))]
    l2_norm: Annotated[float, Range(gt=0, lt=float("inf"))]


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussian(Part):
    """Discrete Gaussians, one share per client, on integer vectors; see `accounting/discrete.py`.

    Args:
        sigma: Parameter of ONE share of noise, N_Z(0, sigma^2), in the units of the integers.
        shares: How many shares the sum is certain to hold (dropouts taken off); 1 is central noise.
        dimension: Coordinates of the vector.
        l1_norm: Largest L1 norm of one unit's integer vector.
        l2_norm: Largest L2 norm of one unit's integer vector.
    """

    sigma: Annotated[float, Range(ge=0, lt=float("inf"))]
    shares: Annotated[int, Range(ge=1)]
    dimension: Annotated[int, Range(ge=1)]
    l1_norm: Annotated[float, Range(gt=0, lt=float("inf"))]
    l2_norm: Annotated[float, Range(gt=0, lt=float("inf"))]


Mechanism = Gaussian | Laplace | PureDP | Skellam | DiscreteGaussian


@dataclass(frozen=True, kw_only=True)
class Event:
    """`count` releases of one mechanism, each on a fresh sample (adaptively chosen or not).

    Example:
        >>> event = Event(mechanism=Gaussian(noise_multiplier=1.0), sampling=Poisson(rate=0.01),
        ...               count=1000)
        >>> Event.from_json(event.to_json()) == event
        True
    """

    mechanism: Mechanism
    sampling: Sampling = field(default_factory=Unsampled)
    count: Annotated[int, Range(ge=0)] = 1

    def __post_init__(self) -> None:
        for name, union in (("mechanism", Mechanism), ("sampling", Sampling)):
            if not isinstance(getattr(self, name), union):
                kinds = ", ".join(_kinds(union))
                raise ConfigError(f"{name}: {getattr(self, name)!r}; allowed: one of {kinds}")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 0:
            raise ConfigError(f"count: {self.count!r}; allowed: a whole number, 0 or more")

    def times(self, count: int) -> Event:
        """Return the event of `count` repetitions of this one."""
        return dataclasses.replace(self, count=self.count * count)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {
            "mechanism": _part_to_json(self.mechanism),
            "sampling": _part_to_json(self.sampling),
            "count": self.count,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Event:
        """Read an event back.

        Raises:
            ConfigError: Not the form that `to_json` writes, or a kind that this version lacks:
                what cannot be understood cannot be accounted.
        """
        if not isinstance(data, Mapping) or set(data) != {"mechanism", "sampling", "count"}:
            raise ConfigError(
                f"not a privacy event: {data!r}; expected the keys mechanism, sampling, count"
            )
        return cls(
            mechanism=_part_from_json("mechanism", data["mechanism"], Mechanism),
            sampling=_part_from_json("sampling", data["sampling"], Sampling),
            count=data["count"],
        )


def _kinds(union: Any) -> dict[str, type]:
    return {kind.__name__: kind for kind in get_args(union)}


def _part_to_json(part: Mechanism | Sampling) -> dict[str, Any]:
    return {"kind": type(part).__name__, **dataclasses.asdict(part)}


def _part_from_json(name: str, data: Any, union: Any) -> Any:
    kinds = _kinds(union)
    if not isinstance(data, Mapping) or data.get("kind") not in kinds:
        kind = data.get("kind") if isinstance(data, Mapping) else data
        hint = did_you_mean(str(kind), kinds)
        raise ConfigError(f"{name}: unknown kind {kind!r}{hint}; known: {', '.join(kinds)}")
    values = {key: value for key, value in data.items() if key != "kind"}
    wanted = {f.name for f in dataclasses.fields(kinds[data["kind"]])}
    if set(values) != wanted:
        raise ConfigError(
            f"{name}: {data['kind']} has the keys {sorted(wanted)}, received {sorted(values)}"
        )
    return kinds[data["kind"]](**values)
