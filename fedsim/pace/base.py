"""What every pace gives: when a training exchange closes, and what becomes of late replies.

An exchange begins at t and closes on the virtual clock (`fedsim.clock`). Client k's reply comes
s_k seconds after t, those of its footprint; replies come in the order of (s_k, k). With a deadline
of D seconds, and m replies waited for, an exchange lasts

    the s_k of the m-th admitted reply       if there are so many within D
    min(D, max_k s_k) over all who sent      if not: it does not wait once everybody's reply is in

A reply that comes at D sharp is used. Who has sent nothing, or failed, is not waited for, as
without a pace; a bad reply counts as rejected whenever it comes. A later reply is dropped: it is
sent all the same, and its bytes count. Or it is kept (`late: keep`), as y_k − x, x being the model
that k was sent, until the round whose exchange is open, or closes, at t + s_k; the strategy then
sees x' + (y_k − x) among that round's replies, x' being that round's model, and gives it

    weight · (1 + τ)^(−a),     τ rounds since k was asked,     a = `discount`

A client in flight is not asked again. Kept replies are not waited for; but where nobody who was
asked sends anything, a round lasts until the next of them is in, or until the deadline. Evaluations
are not hurried, and those in flight go on meanwhile; but scores that come with training replies
(`evaluation.fused`) are those of the replies on time.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from fedsim.parts import Part, Range


@dataclass(frozen=True, kw_only=True)
class PacePart(Part):
    """A pace, as the `pace` group of a scenario names it."""


@dataclass(frozen=True, kw_only=True)
class Hurried(PacePart, abc.ABC):
    """A pace that does not wait for everybody.

    Attributes:
        late: Whether late replies are dropped, or kept for the round in which they come.
        discount: a; 0 gives a kept reply its full weight.
    """

    late: Literal["drop", "keep"] = "drop"
    discount: Annotated[float, Range(ge=0)] = 0.0

    @property
    def deadline_s(self) -> float:
        """D; infinity for none."""
        return math.inf

    @abc.abstractmethod
    def wanted(self, asked: int) -> int:
        """Return m, how many admitted replies close an exchange of so many clients."""
