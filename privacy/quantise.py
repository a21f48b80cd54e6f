"""Vectors to integers and back, with a bound on the integers' norm that holds for certain.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning
with Secure Aggregation", arXiv:2102.06387, algorithm 1 (client) and 2 (server), without noise and
modulus.

    x <- x min(1, C / ||x||)
    x <- H D x      random rotation: D public random signs, H the orthonormal Hadamard matrix
    v <- floor(x / g) + Bernoulli(fraction), coordinate by coordinate, again until ||v||^2 <= B
    B = floor(min((C/g + sqrt d)^2, (C/g)^2 + d/4 + sqrt(2 ln(1/beta)) (C/g + sqrt(d)/2)))
    decode: sum of v, times g, rotated back

Sensitivity. Every v that leaves satisfies ||v||^2 <= B, checked on the integers themselves: one
client moves the sum of integers by at most sqrt(B) in L2 (add/remove), whatever rounding, floating
point or rotation did before, and by at most min(sqrt(d B), B) in L1 (|v| <= v^2 for integers).
Proof: there is nothing between the check and the sum. The rest is about how often it has to be
rounded again:
  * every coordinate moves by less than 1, so ||v|| <= ||x||/g + sqrt(d): never, at the first bound;
  * v = x/g + e with independent E e_i = 0, |range of e_i| = 1, Var e_i <= 1/4, so
    E ||v||^2 <= ||x/g||^2 + d/4, to which the paper adds a deviation that is exceeded with a
    probability of at most beta: at the second bound it takes 1 / (1 - beta) roundings, on average.
Rounding again shrinks the mean a little (that is the bias of the conditional rounding); privacy
does not rest on it.

Shapes: K clients, P parameters, d = P, or with rotation the next power of two.

Differs from the paper: the clipping norm is applied before the scaling rather than after (the same
number).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedsim import seeds
from fedsim.errors import ConfigError, FedsimError
from fedsim.parts import Part, Range
from privacy.discrete import Words

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lattice(Part):
    """How one client's vector becomes integers.

    Attributes:
        dimension: P.
        clip_norm: C.
        spacing: g, what one step of an integer is worth.
        rotate: Whether vectors are rotated first, so that no coordinate is much larger than the
            others and the modulus can be narrow.
        beta: Chance that one rounding exceeds the norm and is done again.
    """

    dimension: Annotated[int, Range(ge=1)]
    clip_norm: Annotated[float, Range(gt=0)]
    spacing: Annotated[float, Range(gt=0)]
    rotate: bool = True
    beta: Annotated[float, Range(gt=0, lt=1)] = math.exp(-0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip_norm / self.spacing + math.sqrt(self.width) < 2.0**30:
            raise ConfigError(
                f"spacing: {self.spacing!r} puts the norm {self.clip_norm!r} beyond 2^30 steps; "
                f"type one of at least {self.clip_norm * 2.0**-29!r}"
            )

    @property
    def width(self) -> int:
        """d, the number of integers."""
        return 2 ** (self.dimension - 1).bit_length() if self.rotate else self.dimension

    @cached_property
    def squared_norm(self) -> int:
        """B, the largest squared norm of the integers."""
        scaled, root = self.clip_norm / self.spacing, math.sqrt(self.width)
        always = (scaled + root) ** 2
        often = (
            scaled**2
            + self.width / 4
            + math.sqrt(2 * math.log(1 / self.beta)) * (scaled + root / 2)
        )
        return math.floor(min(always, often))

    @property
    def sensitivity(self) -> float:
        """sqrt(B): how far one client moves the sum of integers, in L2."""
        return math.sqrt(self.squared_norm)

    @property
    def l1_sensitivity(self) -> float:
        """How far one client moves the sum of integers, in L1."""
        return min(math.sqrt(self.width * self.squared_norm), float(self.squared_norm))

    @property
    def largest(self) -> int:
        """The largest magnitude of one integer of one client."""
        return min(math.isqrt(self.squared_norm), math.ceil(self.clip_norm / self.spacing))

    def encode(self, rows_KP: Floats, words: Sequence[Words], signs_d: Floats | None) -> Integers:
        """Return the integers of K clients, [K, d].

        Args:
            rows_KP: Finite rows, already clipped or not.
            words: One source per client, for its rounding.
            signs_d: The rotation's public signs (`rotation_signs`), or None without rotation.

        Raises:
            FedsimError: A row is not finite; admission should have rejected it.
        """
        rows_KP = np.asarray(rows_KP, dtype=np.float64)
        if not np.isfinite(rows_KP).all():
            raise FedsimError("a row with NaN or infinity cannot be rounded; reject it first")
        scale_K = np.abs(rows_KP).max(axis=1, initial=0.0)
        scale_K[scale_K == 0] = 1.0
        unit_KP = rows_KP / scale_K[:, None]
        # ||x|| > C without the norm, which does not fit for x of 1e308; a row of zeros is within.
        size_K = np.maximum(np.linalg.norm(unit_KP, axis=1), 1.0)
        outside_K = scale_K > self.clip_norm / size_K
        clipped_KP = unit_KP * (self.clip_norm / size_K)[:, None]
        x_Kd = np.zeros((len(rows_KP), self.width))
        x_Kd[:, : self.dimension] = np.where(outside_K[:, None], clipped_KP, rows_KP)
        x_Kd /= self.spacing
        if self.rotate:
            assert signs_d is not None  # noqa: S101 -- a caller's mistake, not a user's
            x_Kd = hadamard_(x_Kd * signs_d)
        bound = self.largest
        np.clip(x_Kd, -bound, bound, out=x_Kd)  # rotation's rounding error may pass C / g by 1e-15
        return np.stack([self._round(x_d, source) for x_d, source in zip(x_Kd, words, strict=True)])

    def _round(self, x_d: Floats, words: Words) -> Integers:
        floor_d = np.floor(x_d)
        rest_d = x_d - floor_d
        base_d = floor_d.astype(np.int64)
        for _ in range(1000):
            uniform_d = (words(x_d.size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            v_d = base_d + (uniform_d < rest_d)
            if int(v_d @ v_d) <= self.squared_norm:
                return v_d
        # Of probability beta^1000 by the proof above; 0 is within every norm.
        return np.zeros_like(base_d)

    def decode(self, sum_d: Integers, signs_d: Floats | None) -> Floats:
        """Return the sum of the vectors from the sum of their integers, [P]."""
        x_d = sum_d.astype(np.float64)
        if self.rotate:
            assert signs_d is not None  # noqa: S101 -- a caller's mistake, not a user's
            x_d = hadamard_(x_d[None])[0] * signs_d
        return x_d[: self.dimension] * self.spacing


def rotation_signs(width: int, seed: int, server_round: int) -> Floats:
    """Return the round's random signs: public, known to the server and every client."""
    bits = seeds.rng(seed, server_round, seeds.SERVER, "rotation").integers(0, 2, size=width)
    return np.where(bits == 1, 1.0, -1.0)


def hadamard_(rows_Kd: Floats) -> Floats:
    """Apply the orthonormal Hadamard matrix to every row, in place where it can; its own inverse.

    Args:
        rows_Kd: Rows whose length is a power of two.
    """
    rows, width = rows_Kd.shape
    half = 1
    while half < width:
        pairs = rows_Kd.reshape(rows, width // (2 * half), 2, half)
        upper = pairs[:, :, 0] + pairs[:, :, 1]
        lower = pairs[:, :, 0] - pairs[:, :, 1]
        pairs[:, :, 0], pairs[:, :, 1] = upper, lower
        half *= 2
    rows_Kd *= width**-0.5
    return rows_Kd
