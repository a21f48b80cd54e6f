"""Pace: when a training exchange closes, and what becomes of late replies. One file per kind."""

from fedsim.pace.base import Hurried, PacePart

__all__ = ["Hurried", "PacePart"]
