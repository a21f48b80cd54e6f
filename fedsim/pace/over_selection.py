"""Over-selection: more clients are asked than are waited for, and the first replies are used.

Bonawitz et al., SysML 2019 (arXiv:1902.01046): the server typically selects 130 % of the target
number of devices, so that those who drop out or straggle are not missed. Who takes part is said by
`participation`, 130 % of the target; m is the target.

Differs from the paper: with too few replies at the deadline, a round is not abandoned, but is made
of those there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fedsim.pace.base import Hurried
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class OverSelection(Hurried):
    """The first replies close the exchange.

    Attributes:
        over: By what share more are asked than waited for: m = asked / (1 + over), rounded up.
        replies: m itself, in the place of a share; where fewer are asked, all are waited for.
        seconds: A deadline besides; null for none.
    """

    over: Annotated[float, Range(ge=0)] = 0.3
    replies: Annotated[int, Range(ge=1)] | None = None
    seconds: Annotated[float, Range(gt=0)] | None = None

    @property
    def deadline_s(self) -> float:
        return math.inf if self.seconds is None else self.seconds

    def wanted(self, asked: int) -> int:
        """See `Hurried.wanted`."""
        if self.replies is not None:
            return min(self.replies, asked)
        return math.ceil(round(asked / (1 + self.over), 9))  # 13 / 1.3 is 10, whatever it rounds to
