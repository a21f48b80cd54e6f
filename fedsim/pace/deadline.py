"""A deadline: an exchange closes after so many simulated seconds, or once everybody is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fedsim.pace.base import Hurried
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Deadline(Hurried):
    """What comes later is late.

    Attributes:
        seconds: D, on the virtual clock, since the exchange began.
    """

    seconds: Annotated[float, Range(gt=0)] = 1.0

    @property
    def deadline_s(self) -> float:
        return self.seconds

    def wanted(self, asked: int) -> int:
        """See `Hurried.wanted`: everybody."""
        return asked
