"""Kernel density by random Fourier features (Rahimi and Recht 2007; Backurs et al. 2024).

    phases, I features     φ_i(x) = √2 cos(ω_i·x + β_i)               of I frequencies
    pairs,  I features     φ(x) = √2 (cos ω_w·x, sin ω_w·x)           of I/2 frequencies
    answer(y) = (1/I) Σ_i a_i S_i φ_i(y) ≈ Σ_x k(x, y)                a_i = 1 but for quadratures

Sensitivity, per record: |cos| ≤ 1, and for a pair |cos| + |sin| ≤ √2, cos² + sin² = 1:

             L1 add/remove   L1 replace   L2 add/remove   L2 replace
    phases   √2 I            2√2 I        √(2I)           2√(2I)
    pairs    I               2I           √I              2√I

Error of a mean over n records: v/I from the features, and from noise of scale b = L1/ε a number
2 b²/(I n²); of Gaussian noise of deviation z C, the same for every I. `planning` has the optima.

Exactness. A phase is an integer number of 2^-41 turns: x is in steps of bound/2^20, frequencies in
2^-41 turns per step (whole turns per step change nothing, so heavy tails are no trouble), products
are exact, and the cosine is one of 2^16 in a table, each rounded towards zero. β, drawn on the same
grid, makes the rounded phases exact on average; pairs are rounded by at most 2^-17 turns.

Records beyond ±bound are clipped to it; so are queries.

Shapes: N records, Q queries, D inputs, W frequencies, F = I features.

Differs from the paper: pairs (half the noise variance of phases or less); Gaussian noise; a pair's
answer is a function of x − y alone, with less variance. 1/(1 + z) by mixtures: see `spectra`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection.statement import Relation
from privacy.similarity.base import Prepared, Summary, pieces
from privacy.similarity.exact import Kernel, kernel_sums
from privacy.similarity.fixed_point import INPUT_BITS, UNIT, check_inputs, steps, units
from privacy.similarity.spectra import BASES, frequencies

TURN_BITS, TABLE_BITS, LOW_BITS = 41, 16, 20
_MASK = 2**TURN_BITS - 1


@dataclass(frozen=True, kw_only=True)
class RandomFeatures(Summary):
    """Sums of random Fourier features.

    Attributes:
        kernel: k.
        bandwidth: σ.
        count: I; even for pairs.
        pairs: See this file's header.
        bound: Coordinates are clipped to ±bound.
        terms: Of the quadrature, for the rational kernels; 0 for the mixture.
        seed: Of frequencies and phases; public.
    """

    stacks: ClassVar[bool] = True

    kernel: Kernel = "gaussian"
    bandwidth: Annotated[float, Range(gt=0)] = 1.0
    count: Annotated[int, Range(ge=2, le=2**20)] = 1024
    pairs: bool = True
    bound: Annotated[float, Range(gt=0)] = 32.0
    terms: Annotated[int, Range(ge=0, le=200)] = 0
    seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inputs(self.dimension)
        if self.pairs and self.count % 2:
            raise ConfigError(f"count: {self.count} is odd; pairs of features need an even number")
        if self.terms and (self.kernel not in BASES or self.terms < 2):
            raise ConfigError(
                f"terms: {self.terms} with kernel {self.kernel}; a quadrature of 2 terms or more "
                f"is for {', '.join(sorted(BASES))}; set terms=0"
            )

    @property
    def size(self) -> int:
        return self.count

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frequencies in 2^-41 turns a step, high and low part; phases; weights of answers."""
        number = self.count // 2 if self.pairs else self.count
        omega_DW, weight_W = frequencies(
            self.kernel,
            dimension=self.dimension,
            count=number,
            bandwidth=self.bandwidth,
            seed=self.seed,
            terms=self.terms,
        )
        step = self.bound / 2**INPUT_BITS
        turns = torch.from_numpy(omega_DW) * (step / (2 * math.pi))
        code = ((turns - turns.floor()) * 2.0**TURN_BITS).round().long() & _MASK
        phase = torch.zeros(number, dtype=torch.int64)
        if not self.pairs:
            rng = seeds.rng(self.seed, 0, seeds.SERVER, "similarity-phases")
            phase = torch.from_numpy(rng.integers(2**TURN_BITS, size=number))
        # Half a step of the table, so that cutting off the low bits rounds.
        phase = phase + 2 ** (TURN_BITS - TABLE_BITS - 1)
        weights = torch.from_numpy(weight_W)
        if self.pairs:
            weights = torch.cat([weights, weights])
        low = 2**LOW_BITS
        return (code // low).double(), (code % low).double(), phase, weights

    def _places(self, x_ND: Tensor) -> Tensor:
        """Return where each phase is in the table, `[N, W]`."""
        high, low, phase, _ = _drawn_on(self, x_ND.device)
        x = steps(x_ND, self.bound).double()
        turns = ((x @ high).long() & _MASK) << LOW_BITS
        turns += (x @ low).long() + phase
        found: Tensor = (turns & _MASK) >> (TURN_BITS - TABLE_BITS)
        return found

    def _look_up(self, x_ND: Tensor, table: Tensor) -> Tensor:
        places = self._places(x_ND)
        if not self.pairs:
            return table[places]
        quarter = 2 ** (TABLE_BITS - 2)
        return torch.cat([table[places], table[(places - quarter) & (2**TABLE_BITS - 1)]], 1)

    def features(self, x_ND: Tensor) -> Tensor:
        return self._look_up(x_ND, cosines(x_ND.device))

    def l1(self, relation: Relation) -> float:
        one = self.count * (1.0 if self.pairs else math.sqrt(2))
        return one if relation == "add_remove" else 2 * one

    def l2(self, relation: Relation) -> float:
        one = math.sqrt(self.count * (1 if self.pairs else 2))
        return one if relation == "add_remove" else 2 * one

    def _weights(self, y_QD: Tensor) -> Tensor:
        """Return ψ, `[Q, F]`."""
        weight_F = _drawn_on(self, y_QD.device)[3]
        return self._look_up(y_QD, real_cosines(y_QD.device)) * (weight_F / self.count)

    def answer(self, prepared: Prepared, y_QD: Tensor) -> Tensor:
        sums = prepared["sums"]
        return torch.cat([self._weights(y) @ sums for y in pieces(y_QD, self.size)])

    def gain(self, y_QD: Tensor) -> Tensor:
        return torch.cat([self._weights(y).norm(dim=1) for y in pieces(y_QD, self.size)])

    def apart(self, prepared: Prepared, y_QD: Tensor, deviation: float) -> Tensor:
        """See `Summary.apart`: how far single frequencies' answers scatter, less the noise's part.

        A frequency's own answer is unbiased (but for a quadrature's few, whose strata are taken as
        one), so the variance of their mean is their sample variance over their number.
        """
        found = []
        for y in pieces(y_QD, self.size):
            weights = self._weights(y)
            terms = weights * prepared["sums"] * self.count
            noise = (weights * deviation * self.count).square()
            if self.pairs:
                terms = terms.view(len(y), 2, -1).sum(1) / 2
                noise = noise.view(len(y), 2, -1).sum(1) / 4
            number = terms.shape[1]
            variance = terms.var(1) - noise.mean(1)
            found.append((variance.clamp(min=0) / number).sqrt())
        return torch.cat(found)

    def exact(self, x_ND: Tensor, y_QD: Tensor) -> Tensor:
        return kernel_sums(x_ND, y_QD, self.kernel, self.bandwidth)


@lru_cache(maxsize=2)
def _drawn_on(summary: RandomFeatures, device: torch.device) -> tuple[Tensor, ...]:
    """Return what is drawn, on a device."""
    return tuple(part.to(device) for part in summary._drawn)


@lru_cache(maxsize=8)
def cosines(device: torch.device) -> Tensor:
    """Return √2 cos of 2^16 places of a turn in steps of UNIT, int64, towards zero.

    Computed on the CPU, whatever the device, so that all have the same.
    """
    turns = torch.arange(2**TABLE_BITS, dtype=torch.float64) / 2**TABLE_BITS
    return units(math.sqrt(2) * (2 * math.pi * turns).cos()).to(device)


@lru_cache(maxsize=8)
def real_cosines(device: torch.device) -> Tensor:
    """Return `cosines` as numbers, float64."""
    return cosines(device).double() * UNIT
