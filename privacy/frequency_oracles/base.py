"""What every frequency oracle gives: an eps-LDP report of one value, and frequencies from many.

A user holds a value; D candidates are public. The value is one of them, or out of the domain (⊥):
such a user reports like all others, from the law of ⊥, since whether a report comes must not tell.
A report *supports* some of the candidates:

    P[a report of v supports v] = p,    P[a report of any other value, or ⊥, supports v] = q
    C_v = number of n reports that support v
    f̂_v = (C_v/n − q)/(p − q)               unbiased, since E C_v/n = f_v p + (1 − f_v) q
    Var f̂_v = q(1−q)/(n(p−q)²) + f_v(1−p−q)/(n(p−q))

Claim: for all values v, v' (⊥ among them) and all reports y, P[y | v] <= e^ε P[y | v']; silence has
probability 0 under every one. Each oracle proves its own; `pmf` gives the law exactly, for audits.

After Wang, Blocki, Li & Jha (USENIX Security 2017, arXiv:1705.04421), section 3 ("pure" protocols).

Shapes: n users, D candidates.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import numpy as np

from fedsim.errors import ConfigError
from privacy.frequency_oracles.coins import Coins

OUT = -1
"""The place of a value that is no candidate: ⊥."""

MOST_OUTCOMES = 2**20
"""Reports that `pmf` enumerates, at most."""


class Oracle(abc.ABC):
    """One randomiser, for one domain.

    Args:
        epsilon: ε > 0.
        candidates: The D candidates: distinct integers, int64 `[D]`.

    Attributes:
        p, q: See this file's header.
    """

    name: ClassVar[str]
    p: float
    q: float

    def __init__(self, epsilon: float, candidates: np.ndarray) -> None:
        if not 0 < epsilon < 700:
            raise ConfigError(f"epsilon: {epsilon!r} is not allowed; type a number in (0, 700)")
        if not len(candidates):
            raise ConfigError("candidates: an oracle needs one or more")
        self.epsilon, self.candidates = epsilon, np.asarray(candidates, np.int64)
        self.size = len(candidates)
        self._numbered = np.array_equal(self.candidates, np.arange(self.size))
        self._order = np.argsort(self.candidates)
        self._ordered = self.candidates[self._order]

    # --- the user's side -------------------------------------------------------------------------

    @abc.abstractmethod
    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        """Return one randomised report for each user, `[n, ...]`.

        Args:
            values: int64 `[n]`, candidates or not.
            coins: Drawn from once for each report, whatever the values are.
        """

    @abc.abstractmethod
    def supports(self, reports: np.ndarray) -> np.ndarray:
        """Return C, how many reports support each candidate, int64 `[D]`."""

    def total(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        """Return C of one report of each user; of the law of `supports(reports(values))`."""
        return self.supports(self.reports(values, coins))

    # --- the analyst's side ----------------------------------------------------------------------

    def estimate(self, supports_D: np.ndarray, n: float) -> np.ndarray:
        """Return f̂, float64 `[D]`; zeros where there is no report."""
        if not n:
            return np.zeros(supports_D.shape)
        estimate: np.ndarray = (supports_D / n - self.q) / (self.p - self.q)
        return estimate

    def variance(self, n: float, frequency: float | np.ndarray = 0.0) -> float | np.ndarray:
        """Return Var f̂_v of a candidate of that frequency."""
        p, q = self.p, self.q
        return q * (1 - q) / (n * (p - q) ** 2) + frequency * (1 - p - q) / (n * (p - q))

    @property
    @abc.abstractmethod
    def report_bits(self) -> float:
        """How many bits one report takes."""

    # --- audits ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def pmf(self) -> np.ndarray:
        """Return P[report | value], `[D + 1, reports + 1]`: ⊥ last, and last of all silence.

        Raises:
            ConfigError: There are too many reports to enumerate.
        """

    @abc.abstractmethod
    def outcomes(self) -> np.ndarray:
        """Return which candidates each report of `pmf` supports, bool `[reports, D]`."""

    # --- helpers ---------------------------------------------------------------------------------

    def places(self, values: np.ndarray) -> np.ndarray:
        """Return each value's place among the candidates, or `OUT`; int64 `[n]`."""
        if self._numbered:
            inside = (values >= 0) & (values < self.size)
            return np.where(inside, values, OUT)
        at = np.minimum(np.searchsorted(self._ordered, values), self.size - 1)
        return np.where(self._ordered[at] == values, self._order[at], OUT)

    def histogram(self, values: np.ndarray) -> np.ndarray:
        """Return how many users hold each candidate, and ⊥ last; int64 `[D + 1]`."""
        places = self.places(values)
        places[places == OUT] = self.size
        return np.bincount(places, minlength=self.size + 1)

    def with_silence(self, pmf: np.ndarray) -> np.ndarray:
        """Return a law with a column for no report, which no value has."""
        return np.concatenate([pmf, np.zeros((len(pmf), 1))], axis=1)

    @staticmethod
    def check_enumerable(count: float) -> None:
        """Check that there are few enough reports.

        Raises:
            ConfigError: There are not.
        """
        if count > MOST_OUTCOMES:
            raise ConfigError(
                f"candidates: {count:.3g} reports are more than the {MOST_OUTCOMES} that can be "
                "enumerated; use fewer candidates"
            )


def column_counts(bits_NB: np.ndarray) -> np.ndarray:
    """Return how many of each column's bits are set, int64 `[B]`; 255 add up to a byte.

    Example:
        >>> column_counts(np.array([[True, False], [True, True]])).tolist()
        [2, 1]
    """
    groups, columns = len(bits_NB) // 255, bits_NB.shape[1]
    whole = bits_NB[: 255 * groups].view(np.uint8).reshape(255, groups * columns)
    sums = whole.sum(axis=0, dtype=np.uint8).reshape(groups, columns)
    counts: np.ndarray = sums.sum(axis=0, dtype=np.int64)
    counts += bits_NB[255 * groups :].sum(axis=0, dtype=np.int64)
    return counts


def worst_ratio(pmf: np.ndarray) -> float:
    """Return max over reports and pairs of values of P[y | v] / P[y | v']; 0/0 counts as 1.

    Example:
        >>> worst_ratio(np.array([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]]))
        3.0
        >>> worst_ratio(np.array([[0.75, 0.25], [1.0, 0.0]]))
        inf
    """
    most, least = pmf.max(axis=0), pmf.min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(most == 0, 1.0, most / least)
    return float(ratio.max())


def bits_of(count: int) -> float:
    """Return the bits that tell `count` things apart."""
    return float(math.ceil(math.log2(max(count, 2))))
