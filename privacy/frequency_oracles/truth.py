"""No randomiser: a user's report is the value. For runs without privacy; the limit of ε → ∞."""

from __future__ import annotations

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, bits_of
from privacy.frequency_oracles.coins import Coins


class Truth(Oracle):
    """A report is a candidate's place, or D for ⊥."""

    name = "truth"
    p, q = 1.0, 0.0

    def reports(self, values: np.ndarray, coins: Coins) -> np.ndarray:
        places = self.places(values)
        return np.where(places == OUT, self.size, places)

    def supports(self, reports: np.ndarray) -> np.ndarray:
        return np.bincount(reports, minlength=self.size + 1)[: self.size]

    @property
    def report_bits(self) -> float:
        return bits_of(self.size + 1)

    def variance(self, n: float, frequency: float | np.ndarray = 0.0) -> float | np.ndarray:
        return 0.0 * frequency

    def pmf(self) -> np.ndarray:
        return self.with_silence(np.eye(self.size + 1))

    def outcomes(self) -> np.ndarray:
        return np.eye(self.size + 1, dtype=bool)[:, : self.size]
