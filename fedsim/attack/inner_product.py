"""Inner-product manipulation (Xie, Koyejo & Gupta, UAI 2019, arXiv:1903.03936, section 4).

    sent = x − ε · μ         all attackers the same

μ is the mean of the attackers' own honest updates, which stand for everybody's. While clients
differ from each other by more than the mean is long, a small ε lies among the honest updates (it is
what Krum picks), and a large one pulls medians to the side on which fewer honest updates are.

Differs from the paper: its attackers know the honest updates; ours know their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fedsim.attack.update import UpdateAttack
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class InnerProduct(UpdateAttack):
    """Colluding updates against the mean.

    Attributes:
        epsilon: ε; the paper's experiments use 0.1 to 10.
    """

    epsilon: Annotated[float, Range(gt=0)] = 1.0

    @property
    def colluding(self) -> bool:
        return True

    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        return (-self.epsilon * updates.mean(0)).expand_as(updates)
