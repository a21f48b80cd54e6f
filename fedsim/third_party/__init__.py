"""Flower's strategies, and anybody's, in our round loop: their sampling, failures and state."""

from fedsim.third_party.calls import StrategyError, failures, participants
from fedsim.third_party.state import restore, state_of

__all__ = ["StrategyError", "failures", "participants", "restore", "state_of"]
