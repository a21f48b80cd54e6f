"""Sign flip: attackers send their update with the sign turned, and as much larger as they like.

    sent = x − scale · (W − x)

Li et al. 2019 (RSA, arXiv:1811.03761), "sign-flipping attack", with models of local SGD in the
place of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fedsim.attack.update import UpdateAttack
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class SignFlip(UpdateAttack):
    """Updates that point the other way.

    Attributes:
        scale: How much longer than the honest update. A mean of equal weights stands still where
            scale = (1 − share) / share, and runs backwards above.
    """

    scale: Annotated[float, Range(gt=0)] = 4.0

    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        return -self.scale * updates
