"""Secure aggregation with distributed noise: each client rounds, adds its share of noise, masks.

Kairouz, Liu and Steinke 2021 (arXiv:2102.06387) for the discrete Gaussian, Agarwal, Kairouz and Liu
2021 (arXiv:2110.04995) for Skellam noise, Bonawitz et al. 2017 (ePrint 2017/281) for the masks.

    client i   v_i = integers of x_i (`privacy.quantise`: clipped, rotated, rounded, ||v_i||^2 <= B)
               y_i = v_i + noise_i  mod 2^b,   noise_i of variance  sigma_i^2 = (z sqrt B)^2 / t
    together   sum of y_i over the survivors, mod 2^b, and nothing else (`privacy.masking`)
    server     centred: numbers from 2^(b-1) on are negative; times the spacing; rotated back

z is the noise multiplier against sqrt(B), the norm that rounding can leave, not against the
clipping norm alone (B >= (C / spacing)^2): a sum of t shares has a standard deviation of z sqrt(B)
steps. t is the threshold: below it there is no sum, so t shares of noise are always in it, and more
survivors bring more noise than was accounted. Shares are of honest clients only: with c of them
colluding against the rest, size the noise for t - c.

What an accountant needs, in steps of the integers: `share_sigma` (of one share), `threshold`
(shares that are certain), `lattice.width`, `lattice.l1_sensitivity`, `lattice.sensitivity`. A sum
of discrete Gaussians is not one (theorem 1 of Kairouz et al.); a sum of Skellams is. The modulus
costs no privacy, being applied to what is already noisy.

What is simulated and what is not: see `privacy.masking`. `secure_sum` there runs the protocol,
message by message; a run takes `total`, which is one integer addition per number and the same bits.

Shapes: K clients, P parameters, d integers per client.

Differs from the papers: the modulus is sized for the worst case, every client at its norm along one
coordinate, instead of a few standard deviations of a rotated vector; so the sum of the vectors
never wraps, and the noise takes it there with a probability of at most 2^-40 a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from privacy.discrete import Words, discrete_gaussian, skellam
from privacy.masking import modular_sum, modulus_mask
from privacy.quantise import Floats, Integers, Lattice, rotation_signs

_WRAP_BITS = 40


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Part):
    """One round's arithmetic, the same for every round.

    Attributes:
        lattice: How a vector becomes integers.
        clients: The most clients a round has.
        threshold: t, the fewest whose sum is restored; the noise is sized for them.
        noise_multiplier: z, against the integers' norm; 0 adds no noise.
        noise: The law of the shares.
        bits: b of the modulus 2^b.
    """

    lattice: Lattice
    clients: Annotated[int, Range(ge=2, le=2**31)]
    threshold: Annotated[int, Range(ge=2)]
    noise_multiplier: Annotated[float, Range(ge=0, lt=math.inf)]
    noise: Literal["discrete_gaussian", "skellam"] = "skellam"
    bits: Annotated[int, Range(ge=2, le=62)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold > self.clients:
            raise ConfigError(
                f"threshold: {self.threshold} is more than the {self.clients} clients of a round; "
                f"allowed: [2, {self.clients}]"
            )
        if self.needed_bits > self.bits:
            raise ConfigError(
                f"bits: {self.bits} can wrap: {self.clients} clients of up to"
                f" {self.lattice.largest} steps each and {self.noise_tail} of noise do not fit"
                f" below 2^{self.bits - 1}; bits={self.needed_bits} would do, or a spacing wider"
                f" than {self.lattice.spacing:g}"
            )

    @property
    def share_sigma(self) -> float:
        """Standard deviation of one client's share of the noise, in steps."""
        return self.noise_multiplier * self.lattice.sensitivity / math.sqrt(self.threshold)

    @property
    def noise_tail(self) -> int:
        """What the noise of all clients exceeds somewhere with a probability of at most 2^-40.

        V is the variance when all survive and L = ln(2 d 2^40). A discrete Gaussian is subgaussian
        with its sigma (Canonne et al. 2020), so sums stay within sqrt(2 V L). A Poisson less its
        mean has ln E e^{sX} <= rate s^2 / (2 (1 - s/3)) on either side, so that Bernstein's sqrt(2
        V L) + L / 3 holds for Skellam.
        """
        variance = self.clients * self.share_sigma**2
        level = math.log(2 * self.lattice.width) + _WRAP_BITS * math.log(2)
        tail = math.sqrt(2 * variance * level)
        if self.noise == "skellam" and variance:
            tail += level / 3
        return math.ceil(tail)

    @property
    def needed_bits(self) -> int:
        """The narrowest modulus that cannot wrap, in bits."""
        return (self.clients * self.lattice.largest + self.noise_tail).bit_length() + 1

    def signs(self, seed: int, server_round: int) -> Floats | None:
        """Return the round's public rotation, or None where there is none."""
        if not self.lattice.rotate:
            return None
        return rotation_signs(self.lattice.width, seed, server_round)

    def encode(
        self, rows_KP: Floats, words: Sequence[Words], signs_d: Floats | None
    ) -> NDArray[np.uint64]:
        """Return what each of K clients hands to the masks, [K, d], mod 2^bits.

        Args:
            rows_KP: The clients' vectors, finite.
            words: Each client's own source, for its rounding and then its noise.
            signs_d: The round's rotation (`signs`).
        """
        steps_Kd = self.lattice.encode(rows_KP, words, signs_d)
        for row_d, source in zip(steps_Kd, words, strict=True):
            row_d += self._share(source)
        return steps_Kd.astype(np.uint64) & modulus_mask(self.bits)

    def _share(self, words: Words) -> Integers:
        width, sigma = self.lattice.width, self.share_sigma
        if sigma == 0:
            return np.zeros(width, dtype=np.int64)
        if self.noise == "skellam":
            return skellam(words, sigma**2, width)
        return discrete_gaussian(words, sigma, width)

    def total(self, encoded_Kd: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the sum of the survivors' rows mod 2^bits: `masking.secure_sum`'s, bit for bit."""
        return modular_sum(encoded_Kd, self.bits)

    def decode(self, total_d: NDArray[np.uint64], signs_d: Floats | None) -> Floats:
        """Return the noisy sum of the vectors from the modular sum, [P]."""
        return self.lattice.decode(centred(total_d, self.bits), signs_d)


def centred(total_d: NDArray[np.uint64], bits: int) -> Integers:
    """Return the representatives of numbers mod 2^bits in [-2^(bits-1), 2^(bits-1)).

    Example:
        >>> centred(np.array([0, 7, 8, 15], dtype=np.uint64), 4).tolist()
        [0, 7, -8, -1]
    """
    half = np.int64(1) << np.int64(bits - 1)
    return ((total_d & modulus_mask(bits)).astype(np.int64) ^ half) - half
