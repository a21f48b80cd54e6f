"""No device profile: no footprint of clients is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.devices.base import DevicesPart


@dataclass(frozen=True, kw_only=True)
class Unprofiled(DevicesPart):
    """Nothing is known of the devices."""

    def fleet(self, num_clients: int, seed: int) -> None:
        """See `DevicesPart.fleet`."""
        return None
