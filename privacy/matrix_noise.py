"""Noise that is correlated over the rounds, for training whose clients cannot be sampled (DP-FTRL).

The sum of round t is x_t; what the model feels are the prefix sums A x, A the n x n matrix of ones
on and below the diagonal. Write A = B C. One Gaussian release of C x, decoded by B, is A x + B Z:
in the t-th round's sum, the noise (C^-1 Z)_t, where Z holds one fresh vector per row of C. It
cancels in part from round to round, which independent noise cannot.

Sensitivity. Let one unit take part in the rounds S, with contributions u_i of norm <= 1. Then C x
moves by s, where (c_i being the i-th column)
    s^2 = || sum_i c_i u_i^T ||_F^2 = sum_ij (C^T C)_ij <u_i, u_j> <= sum_{i,j in S} |(C^T C)_ij|
and the sensitivity is the largest s over the S that participation allows: at most k rounds, any two
at least b apart ("(k, b)-participation", Choquette-Choo et al. 2023, arXiv:2211.06530). For lower
triangular C this holds under adaptive choice of x too (Denisov et al. 2022, arXiv:2202.08312,
theorem 2.1), so the whole run is ONE Gaussian event of multiplier z when Z's standard deviation is
z * sensitivity * clip norm.

banded  C lower triangular and Toeplitz with c_0 ... c_{w-1} the first w coefficients of (1-x)^-1/2,
          c_0 = 1,  c_j = c_{j-1} (2j - 1) / (2j),
        zero below: the square root of A, cut to w bands. C y = Z is solved row by row,
          y_t = z_t - sum_{0 < j < w} c_j y_{t-j}.
        c is positive and decreasing, so s is largest for S = {0, b, 2b, ...} (Kalinin and Lampert
        2024, arXiv:2405.13763, theorem 2); with w <= b these columns do not overlap: s^2 = sum
        ||c_i||^2.
tree    row t of C has ones under the node of the binary tree that closes at round t: rounds
        (t - lowest bit of t, t]. A prefix is the sum of the nodes of t's binary digits (Chan et al.
        2011; Dwork et al. 2010), here in trees of `restart` rounds one after the other (Kairouz et
        al. 2021, arXiv:2103.00039); no other node of the tree is ever used. y_t = prefix noise(t) -
        prefix noise(t - 1). A node over 2^l rounds holds at most m_l = min(k, ceil(2^l / b))
        participations, all nodes of a level together at most k, and a sum of squares of numbers
        <= m_l that add up to k is <= k m_l, so s^2 <= sum_l k m_l over 2^l <= min(restart, n).

Differs from the papers: the tree's estimates are not averaged over the nodes below (Honaker 2015),
which would need all of them at once; the banded matrix is the closed form, not a numerical optimum,
and its columns are not normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range

MOST_BANDS = 64
"""Past it every band costs a vector of memory for little: prefix sums of 1000 rounds with one
participation have an RMSE of 22.4 z with 1 band, 5.5 with 32, 4.3 with 64, 3.6 with 128, 3.1 with
all."""

Draw = Callable[[int], Tensor]
"""Row -> its fresh vector: keyed by the row alone, so that it can be drawn again."""


@dataclass(frozen=True, kw_only=True)
class CorrelatedNoise(Part):
    """One factorisation for one run.

    Attributes:
        kind: `banded` or `tree`.
        rounds: n, how many releases the run may make.
        max_participations: k, in how many of them one unit may take part.
        min_separation: b, how many rounds apart they are at least; 1 allows consecutive rounds.
        bands: w of `banded`, whose running form holds w - 1 vectors. Null takes b (n where a unit
            takes part once), at most 64. 1 is independent noise.
        restart: Rounds per tree of `tree`; null takes one tree over all.
    """

    kind: Literal["banded", "tree"]
    rounds: Annotated[int, Range(ge=1)]
    max_participations: Annotated[int, Range(ge=1)] = 1
    min_separation: Annotated[int, Range(ge=1)] = 1
    bands: Annotated[int, Range(ge=1)] | None = None
    restart: Annotated[int, Range(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "banded" and self.restart is not None:
            raise ConfigError(f"restart: {self.restart} is of kind=tree; kind=banded takes bands")
        if self.kind == "tree" and self.bands is not None:
            raise ConfigError(f"bands: {self.bands} is of kind=banded; kind=tree takes restart")

    @property
    def participations(self) -> int:
        """k, less what does not fit n rounds at the given separation."""
        return min(self.max_participations, math.ceil(self.rounds / self.min_separation))

    @property
    def width(self) -> int:
        """The number of bands that are used."""
        if self.bands is not None:
            return min(self.bands, self.rounds)
        separation = self.rounds if self.participations == 1 else self.min_separation
        return min(separation, self.rounds, MOST_BANDS)

    @property
    def tree_rounds(self) -> int:
        """Rounds per tree."""
        return min(self.restart or self.rounds, self.rounds)

    @cached_property
    def coefficients(self) -> NDArray[np.float64]:
        """c_0 ... c_{w-1} of the banded matrix."""
        j = np.arange(1, self.width, dtype=np.float64)
        return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])

    @cached_property
    def sensitivity(self) -> float:
        """How far one unit of clip norm 1 can move C x; Z has z * sensitivity * clip norm."""
        k, b = self.participations, self.min_separation
        if self.kind == "banded":
            worst_N = np.zeros(self.rounds)
            for first in range(0, k * b, b):
                column = self.coefficients[: self.rounds - first]
                worst_N[first : first + column.size] += column
            return float(np.linalg.norm(worst_N))
        levels = range(self.tree_rounds.bit_length())
        return math.sqrt(sum(k * min(k, math.ceil(2**level / b)) for level in levels))

    def round_noise(self, draw: Draw, t: int) -> Tensor:
        """Return the noise of round t = 1 ... n, in the units of `draw`.

        A pure function of keyed draws: the tree draws at most log2(t) + 1 rows, the banded form the
        t rows up to here. A loop over all rounds takes `start`, which remembers some vectors, draws
        every row once and gives the same numbers.
        """
        if self.kind == "tree":
            return self._tree_noise(draw, t)
        self._check(t)
        running = self.start(draw)
        for earlier in range(1, t):
            running(earlier)
        return running(t)

    def start(self, draw: Draw) -> RunningNoise:
        """Return what gives one round's noise after the other."""
        return RunningNoise(self, draw)

    def _tree_noise(self, draw: Draw, t: int) -> Tensor:
        """Return prefix noise(t) - prefix noise(t - 1): the node that t closes, less its parts."""
        self._check(t)
        first = (t - 1) // self.tree_rounds * self.tree_rounds
        position = t - first
        noise = draw(t).clone()
        start, end = position - _lowest_bit(position), position - 1
        while end > start:  # the nodes of t - 1 that lie under the one that closes
            noise.sub_(draw(first + end))
            end -= _lowest_bit(end)
        return noise

    def _check(self, t: int) -> None:
        if not 1 <= t <= self.rounds:
            raise ConfigError(
                f"round {t} has no noise: the factorisation is for rounds 1 to {self.rounds}; "
                "its privacy holds for no more"
            )


def _lowest_bit(number: int) -> int:
    return number & -number


class RunningNoise:
    """The rounds' noise in order, 1, 2, ...; every row is drawn once.

    Noise that cannot be drawn again, as the operating system's, can be given in this form alone.

    Attributes:
        state: What a checkpoint needs to go on, newest first: the last w - 1 rounds' noise
            (`banded`), or the rows of the open nodes, one per binary digit 1 of the round (`tree`).
        done: The last round that was given.
    """

    def __init__(
        self, noise: CorrelatedNoise, draw: Draw, state: list[Tensor] | None = None, done: int = 0
    ) -> None:
        self.noise = noise
        self.draw = draw
        self.state = list(state or [])
        self.done = done

    def __call__(self, t: int) -> Tensor:
        """Return round t's noise.

        Raises:
            ValueError: t is not the round after the last one.
        """
        if t != self.done + 1:
            raise ValueError(f"noise of round {t} was asked after round {self.done}'s")
        self.noise._check(t)
        noise = self._tree(t) if self.noise.kind == "tree" else self._banded(t)
        self.done = t
        return noise

    def _banded(self, t: int) -> Tensor:
        noise = self.draw(t).clone()
        for coefficient, earlier in zip(self.noise.coefficients[1:], self.state, strict=False):
            noise.sub_(earlier, alpha=float(coefficient))
        self.state = [noise, *self.state][: self.noise.width - 1]
        return noise.clone()

    def _tree(self, t: int) -> Tensor:
        position = (t - 1) % self.noise.tree_rounds + 1
        open_ = self.state if position > 1 else []
        absorbed = _lowest_bit(position).bit_length() - 1
        row = self.draw(t).clone()
        noise = row.clone()
        for earlier in open_[:absorbed]:
            noise.sub_(earlier)
        self.state = [row, *open_[absorbed:]]
        return noise
