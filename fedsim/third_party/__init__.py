"""Anybody's Flower strategies in our round loop: sampling, failures, client halves, state."""

from fedsim.third_party.calls import StrategyError, failures, participants, show_model
from fedsim.third_party.halves import half_for, of_mean_only
from fedsim.third_party.state import restore, state_of

__all__ = [
    "StrategyError",
    "failures",
    "half_for",
    "of_mean_only",
    "participants",
    "restore",
    "show_model",
    "state_of",
]
