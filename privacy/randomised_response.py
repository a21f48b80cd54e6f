"""The k-ary randomised response channel (Kairouz, Oh, Viswanath 2014, arXiv:1407.1338).

    keep the label with probability p = e^eps / (e^eps + k - 1), else one of the other k - 1, each
    alike

The ratio of any report's probabilities under two labels is at most e^eps: (eps, 0)-DP for one
label, replaced by any other. The probabilities are those of integers (`probability` gives them as
fractions), so that the ratio holds for what is drawn and not only for what is meant.

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
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.parts import Part, Range
from privacy.discrete import uniform_below
from privacy.normal import NoiseSource


@dataclass(frozen=True, kw_only=True)
class RandomisedResponse(Part):
    """The channel, and what undoes it on average.

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
