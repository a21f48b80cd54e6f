"""Local privacy: what a client may do to its own number, vector or label before anyone sees it.

Every mechanism here is (epsilon, delta)-private for ONE report when a client's whole value is
replaced by any other (replace one, unit: report or label); a client that reports T times spends T
of them.

    Gaussian vector    x' = clip(x, C) + sigma N(0, I), sensitivity 2C: two vectors of norm C can
                       point in opposite directions. sigma = 2C / mu, where mu solves (Balle and
                       Wang 2018, arXiv:1805.06530, theorem 8)
                       delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)
    Laplace number     x' = clip(x, low, high) + Laplace((high - low) / eps); delta = 0
    k-ary randomised   keep the label with probability p = e^eps / (e^eps + k - 1), else one of the
    response           other k - 1, each alike; delta = 0 (Kairouz, Oh, Viswanath 2014,
                       arXiv:1407.1338)

The classical sigma = C sqrt(2 ln(1.25/delta)) / eps is not used: it is wrong above eps = 1, and C
in the place of 2C is wrong everywhere (delta = 1.7e-3 where 1e-5 was claimed, at eps = 1).

Shapes: N labels, K kinds of label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from privacy.clipping import clip_
from privacy.discrete import uniform_below
from privacy.normal import NoiseSource


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of one Gaussian release whose sensitivity is mu standard deviations.

    The second term goes through logarithms: e^eps alone overflows at 710.
    """
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the smallest standard deviation that makes one release (epsilon, delta)-private.

    Args:
        epsilon: > 0.
        delta: In (0, 1).
        sensitivity: The farthest that two neighbours' values can lie apart, in L2; 2C for a vector
            that was clipped to C and may be replaced by any other.

    Example:
        >>> round(gaussian_sigma(4.377178, 1e-5, 1.0), 5)
        1.0
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ConfigError(
            f"epsilon, delta: ({epsilon!r}, {delta!r}) is not allowed; epsilon > 0, 0 < delta < 1"
        )
    # delta grows with mu. At mu = sqrt(2 eps) it is near 1/2; a hundred doublings cover all else.
    low = high = math.sqrt(2 * epsilon)
    while gaussian_delta(low, epsilon) > delta:
        low /= 2
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    if low == high:
        return sensitivity / low
    mu = float(
        brentq(lambda m: gaussian_delta(m, epsilon) - delta, low, high, xtol=1e-300, rtol=1e-14)
    )
    sigma = sensitivity / mu
    # The root is rounded to either side: step to the one where no more is claimed than is so.
    while gaussian_delta(sensitivity / sigma, epsilon) > delta:
        sigma *= 1 + 1e-13
    return sigma


@dataclass(frozen=True, kw_only=True)
class GaussianReport(Part):
    """One vector, clipped and noised by its own client.

    Attributes:
        clip_norm: The L2 norm C that vectors are clipped to.
        epsilon: Of one report.
        delta: Of one report.
    """

    clip_norm: Annotated[float, Range(gt=0)]
    epsilon: Annotated[float, Range(gt=0)]
    delta: Annotated[float, Range(gt=0, lt=1)]

    @cached_property
    def sensitivity(self) -> float:
        """2C: x and any x' that replaces it both have norm C at most."""
        return 2.0 * self.clip_norm

    @cached_property
    def sigma(self) -> float:
        """The standard deviation of every coordinate's noise."""
        return gaussian_sigma(self.epsilon, self.delta, self.sensitivity)

    @property
    def noise_multiplier(self) -> float:
        """The z = sigma / C of an event; under `replace_one` it is charged as Gaussian(z / 2)."""
        return self.sigma / self.clip_norm

    def privatise(self, vector_P: Tensor, source: NoiseSource) -> Tensor:
        """Return the report on `vector_P`; one that is not finite is reported as zero."""
        row_1P = vector_P.detach().clone().unsqueeze(0)
        clip_(row_1P, self.clip_norm)
        noise_P = source.normal(row_1P.shape[1], dtype=row_1P.dtype).to(row_1P.device)
        return row_1P[0].add_(noise_P, alpha=self.sigma)


@dataclass(frozen=True, kw_only=True)
class LaplaceReport(Part):
    """One number, bounded and noised by its own client (floating-point Laplace noise).

    Attributes:
        low: Smallest value; what lies below is moved here.
        high: Largest value.
        epsilon: Of one report.
    """

    low: float
    high: float
    epsilon: Annotated[float, Range(gt=0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"low, high: {self.low}, {self.high} is not an interval; low < high")

    @property
    def scale(self) -> float:
        """The Laplace scale b = (high - low) / epsilon; its variance is 2 b^2."""
        return (self.high - self.low) / self.epsilon

    def privatise(self, values: NDArray[np.float64], source: NoiseSource) -> NDArray[np.float64]:
        """Return one report per value, each a client's own; NaN counts as the middle."""
        middle = (self.low + self.high) / 2
        bounded = np.clip(np.where(np.isnan(values), middle, values), self.low, self.high)
        return bounded + self.scale * laplace(source, bounded.size).reshape(bounded.shape)


def laplace(source: NoiseSource, size: int) -> NDArray[np.float64]:
    """Return standard Laplace noise, P[|X| > x] = e^-x, by inversion in float64; |X| <= 37.4."""
    words = source.words(size)
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    # The lowest bit is not among the 52 above: sign and size are independent.
    return np.where(words & np.uint64(1), np.log(uniform), -np.log(uniform))


@dataclass(frozen=True, kw_only=True)
class RandomisedResponse(Part):
    """The k-ary randomised response channel, and what undoes it on average.

    Attributes:
        kinds: Number of labels k.
        epsilon: Of one report.
    """

    kinds: Annotated[int, Range(ge=2, le=2**30)]
    epsilon: Annotated[float, Range(gt=0, le=16)]

    @cached_property
    def keep_words(self) -> int:
        """How many of the 2^53 values of a uniform word keep the label: p 2^53, rounded down.

        Down, and two further for the rounding of e^eps, so that keeping is never likelier, against
        any other label, than e^eps.
        """
        return math.floor(Fraction(self.keep_probability) * 2**53) - 2

    @property
    def keep_probability(self) -> float:
        """The p of the header, e^eps / (e^eps + k - 1)."""
        return math.exp(self.epsilon) / (math.exp(self.epsilon) + self.kinds - 1)

    def probability(self, reported: int, label: int) -> Fraction:
        """Return P[reported | label] as the code draws it, exactly."""
        kept = Fraction(self.keep_words, 2**53)
        return kept if reported == label else (1 - kept) / (self.kinds - 1)

    def privatise(self, labels_N: NDArray[np.int64], source: NoiseSource) -> NDArray[np.int64]:
        """Return one report per label.

        Raises:
            ConfigError: A label is outside 0 ... k - 1.
        """
        labels_N = np.asarray(labels_N, dtype=np.int64)
        if labels_N.size and not (0 <= labels_N.min() and labels_N.max() < self.kinds):
            raise ConfigError(
                f"labels from {labels_N.min()} to {labels_N.max()} do not fit kinds={self.kinds}; "
                f"allowed: 0 to {self.kinds - 1}"
            )
        kept_N = (source.words(labels_N.size) >> np.uint64(11)) < np.uint64(self.keep_words)
        # One of the others: 1 ... k-1 places further round the circle of labels.
        moved_N = (labels_N + 1 + uniform_below(source.words, self.kinds - 1, labels_N.size)) % (
            self.kinds
        )
        return np.where(kept_N, labels_N, moved_N)

    def frequencies(self, reports_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the unbiased estimate of every label's share, [K]; it may be below 0 or above 1.

        E[share reported] = q + (p - q) share, with q = (1 - p) / (k - 1), so share = (r - q) / (p -
        q).
        """
        share_K = np.bincount(reports_N, minlength=self.kinds) / max(len(reports_N), 1)
        p, q = self._pair
        return (share_K - q) / (p - q)

    def unbiased_loss(self, loss_NK: Tensor, reports_N: Tensor) -> Tensor:
        """Return the loss at the true labels, in expectation, from reported ones, [N].

        Patrini et al. 2017 (arXiv:1609.03683), backward correction T^-1 loss, in closed form:
        (loss[report] - q sum_j loss[j]) / (p - q). Linear in the losses, so its gradient is
        unbiased for the gradient too. It can be negative.

        Args:
            loss_NK: The loss of every example under each of the k labels.
            reports_N: The reported labels, int64.
        """
        p, q = self._pair
        reported_N = loss_NK.gather(1, reports_N.to(torch.int64).unsqueeze(1)).squeeze(1)
        return (reported_N - q * loss_NK.sum(dim=1)) / (p - q)

    @cached_property
    def _pair(self) -> tuple[float, float]:
        return float(self.probability(0, 0)), float(self.probability(0, 1))
