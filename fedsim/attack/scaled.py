"""Scaled update: attackers send their honest update many times over.

    sent = x + factor · (W − x)

Blanchard et al. 2017 (arXiv:1703.02757), Lemma 1: one such client makes any linear rule arbitrary.
A factor of N replaces the model by the attackers' own (Bagdasaryan et al. 2020, arXiv:1807.00459).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.attack.update import UpdateAttack


@dataclass(frozen=True, kw_only=True)
class Scaled(UpdateAttack):
    """Updates times a number.

    Attributes:
        factor: Any finite number. What overflows the model's precision becomes infinite, and
            admission rejects it.
    """

    factor: float = 10.0

    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        return self.factor * updates
