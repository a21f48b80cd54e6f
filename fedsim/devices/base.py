"""What every device profile gives: how fast each client computes, and how fast its link is.

    seconds of a client in an exchange = bytes down / down + operations / flops + bytes up / up

Nothing overlaps: it receives, then computes, then sends. What the links of the topology add is in
`fedsim.network`. A round of synchronous training takes as long as the slowest of those who reply.

Shapes: N clients of the population, K of an exchange.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np

from fedsim.parts import Part


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices of a population, each column float64 `[N]`.

    Attributes:
        flops_N: Floating-point operations per second that training reaches.
        down_N, up_N: Bytes per second of the link from the server, and to it.
        memory_N: Bytes that local work may take; None if all of it fits. See `fedsim.memory`.
    """

    flops_N: np.ndarray
    down_N: np.ndarray
    up_N: np.ndarray
    memory_N: np.ndarray | None = None


class DevicesPart(Part, abc.ABC):
    """A device profile, as the `devices` group of a scenario names it."""

    @abc.abstractmethod
    def fleet(self, num_clients: int, seed: int) -> Fleet | None:
        """Return the devices of a run; None if no footprint is to be recorded."""
