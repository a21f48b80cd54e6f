"""No attack: everybody is honest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsim.attack.base import Attackers, AttackPart
from fedsim.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class NoAttack(AttackPart):
    """Everybody is honest."""

    def bind(
        self,
        *,
        num_clients: int,
        seed: int,
        dataset: Dataset,
        client_index: Callable[[int], int],
    ) -> Attackers:
        return Attackers()
