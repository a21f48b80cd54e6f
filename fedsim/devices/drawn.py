"""Devices of a median speed and link, spread log-normally over clients.

    flops_n = flops · exp(spread · z_n),   (down_n, up_n) = (down, up) · exp(link_spread · z'_n)
    memory_n = memory · exp(memory_spread · z''_n)

z, z', z'' ~ N(0, 1), independent of each other; a client's link is fast or slow both ways. With all
spreads 0, devices are all alike. The numbers are assumptions about devices, no measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim import seeds
from fedsim.devices.base import DevicesPart, Fleet
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class Drawn(DevicesPart):
    """Log-normal speeds and links.

    Attributes:
        flops: Median operations per second that training reaches.
        down, up: Median bytes per second from the server, and to it.
        spread: Standard deviation of the logarithm of a device's speed.
        link_spread: Of the logarithm of its link's.
        memory: Median bytes that local work may take; null: all of it fits.
        memory_spread: Of its logarithm.
    """

    flops: Annotated[float, Range(gt=0)] = 1e9
    down: Annotated[float, Range(gt=0)] = 2.5e6
    up: Annotated[float, Range(gt=0)] = 1e6
    spread: Annotated[float, Range(ge=0, le=5)] = 0.0
    link_spread: Annotated[float, Range(ge=0, le=5)] = 0.0
    memory: Annotated[float, Range(gt=0)] | None = None
    memory_spread: Annotated[float, Range(ge=0, le=5)] = 0.0

    def fleet(self, num_clients: int, seed: int) -> Fleet:
        """See `DevicesPart.fleet`."""
        speed_N = self._factors(num_clients, seed, "device-speed", self.spread)
        link_N = self._factors(num_clients, seed, "device-link", self.link_spread)
        memory_N = None
        if self.memory is not None:
            memory_N = self.memory * self._factors(
                num_clients, seed, "device-memory", self.memory_spread
            )
        return Fleet(
            flops_N=self.flops * speed_N,
            down_N=self.down * link_N,
            up_N=self.up * link_N,
            memory_N=memory_N,
        )

    @staticmethod
    def _factors(num_clients: int, seed: int, purpose: str, spread: float) -> np.ndarray:
        rng = seeds.rng(seed, 0, seeds.SERVER, purpose)
        factor_N: np.ndarray = np.exp(spread * rng.standard_normal(num_clients))
        return factor_N
