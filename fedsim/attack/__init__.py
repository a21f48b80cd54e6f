"""Attackers: some of the clients lie. One attack a file."""

from fedsim.attack.base import Attackers, AttackPart, SomeMalicious
from fedsim.attack.update import UpdateAttack

__all__ = ["AttackPart", "Attackers", "SomeMalicious", "UpdateAttack"]
