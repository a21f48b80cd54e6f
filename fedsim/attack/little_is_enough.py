"""A little is enough (Baruch, Baruch & Goldberg, NeurIPS 2019, arXiv:1902.06156, Algorithm 3).

    sent = x + μ + z · σ         at every coordinate, all attackers the same
    s = ⌊n/2 + 1⌋ − M,   z = max {z : Φ(z) < (n − M − s) / (n − M)}

μ and σ are mean and standard deviation of the attackers' own honest updates, which stand for
everybody's; n replies, M of them from attackers; s is how many honest clients must lie further out
for the forged value to pass as one of the majority.

Differs from the paper: where attackers are the majority already, s is 1; where the formula gives a
negative z (small n), z is 0. The paper's experiments also set z by hand, e.g. 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from fedsim.attack.update import UpdateAttack


@dataclass(frozen=True, kw_only=True)
class LittleIsEnough(UpdateAttack):
    """Colluding updates, off the mean by as much as honest ones are.

    Attributes:
        z: How many standard deviations, of either sign; null for the paper's formula.
    """

    z: float | None = None

    @property
    def colluding(self) -> bool:
        return True

    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        z = z_max(num_replies, len(updates)) if self.z is None else self.z
        return (updates.mean(0) + z * updates.std(0, correction=0)).expand_as(updates)


def z_max(n: int, malicious: int) -> float:
    """Return the paper's z for `n` replies, `malicious` of them forged.

    Example:
        >>> round(z_max(50, 12), 3)  # s = 14 of 38 honest ones
        0.336
    """
    honest = n - malicious
    if honest < 1:
        return 0.0
    supporters = max(n // 2 + 1 - malicious, 1)
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(share) if share > 0.5 else 0.0
