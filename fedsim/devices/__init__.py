"""Devices: what clients compute and send with. One file per kind of profile."""

from fedsim.devices.base import DevicesPart, Fleet

__all__ = ["DevicesPart", "Fleet"]
