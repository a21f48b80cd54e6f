"""The noise on a sum, and what it costs.

    laplace    every number of S gets Lap(b), b = Δ₁/ε: ε-DP
    gaussian   every number gets N(0, (z C)²), by the exact profile: (ε, δ)-DP; a Gaussian process
               gets it coloured

    central      once, by the server          the sum is noisy
    distributed  a share N(0, (z C)²/m) per client; any m of them together have all of it. Laplace
                 noise has no such shares here
    local        all of it by each client, on its own sum

Noise is rounded to UNIT. A noisy sum is then the rounding of sum + noise, since the sum lies on the
grid: post-processing. A share is rounded like a client's own noise; UNIT is 2^-30, far below what
float64 leaves of noise anyway, and the statement calls the noise floating-point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from fedsim.protection.statement import Relation
from privacy.accountant import calibrate
from privacy.events import Event, Gaussian, Laplace
from privacy.normal import NoiseSource
from privacy.similarity.base import Summary, event_norm
from privacy.similarity.fixed_point import UNIT

Law = Literal["laplace", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Noise(Part):
    """Noise of one law and size; public.

    Attributes:
        law: See this file's header.
        scale: b of Laplace, or the standard deviation.
    """

    law: Law
    scale: Annotated[float, Range(ge=0, lt=math.inf)]

    @property
    def deviation(self) -> float:
        """The standard deviation of one number's noise."""
        return self.scale * (math.sqrt(2) if self.law == "laplace" else 1.0)

    def draw(self, summary: Summary, source: NoiseSource, *, share: int = 1) -> Tensor:
        """Return noise for a sum in steps of UNIT, int64 `[F]`; one of `share` equal shares."""
        if self.law == "laplace":
            if share > 1:
                raise ConfigError("noise: laplace noise cannot be shared out; use noise=gaussian")
            white = laplace(source, summary.size)
        else:
            white = source.normal(summary.size, dtype=torch.float64)
        scaled = summary.coloured(white) * (self.scale / math.sqrt(share) / UNIT)
        return scaled.round().clamp(-(2.0**62), 2.0**62).long()

    def event(self, summary: Summary, relation: Relation) -> Event:
        """Return what a release costs."""
        if self.law == "laplace":
            norm = event_norm(summary.l1(relation), relation)
            return Event(mechanism=Laplace(scale=self.scale / norm))
        norm = event_norm(summary.l2(relation), relation)
        return Event(mechanism=Gaussian(noise_multiplier=self.scale / norm))


def noise_for(
    summary: Summary, law: Law, *, epsilon: float, delta: float, relation: Relation
) -> Noise:
    """Return the least noise that makes a sum (ε, δ)-DP, or ε-DP for Laplace noise."""
    if law == "laplace":
        # A little more, so that what the accountant sums up is not above ε by a rounding.
        return Noise(law=law, scale=summary.l1(relation) / epsilon * (1 + 1e-12))
    norm = event_norm(summary.l2(relation), relation)
    return Noise(law=law, scale=_multiplier(epsilon, delta, relation) * norm)


@cache
def _multiplier(epsilon: float, delta: float, relation: Relation) -> float:
    """Return the smallest z of one Gaussian release."""
    if not 0 < delta < 1:
        raise ConfigError(
            f"delta: {delta:g} is not met by Gaussian noise; set one in (0, 1), or noise=laplace"
        )
    return calibrate(
        lambda z: [Event(mechanism=Gaussian(noise_multiplier=z))],
        epsilon=epsilon,
        delta=delta,
        relation=relation,
    )


def laplace(source: NoiseSource, size: int) -> Tensor:
    """Return `size` independent Laplace numbers of scale 1, float64.

    The top 53 bits of a word are a uniform in (0, 1), whose negative logarithm is the size; the
    lowest bit is the sign.
    """
    words = source.words(size)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    sign = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)
    return torch.from_numpy(-np.log(uniform) * sign)
