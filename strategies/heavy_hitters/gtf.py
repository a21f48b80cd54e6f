"""GTF: the group-by-trie baseline of FedFT (Shao et al. 2022), repaired to be locally private.

    level h = 1..g: a group whose size grows linearly from 1/2 to 3/2 of the mean reports
    f̂ = the plain mean of the clients' frequencies, whatever their numbers of users;  k go on

Differs from the released code: there, a user whose prefix is no candidate sends nothing, or that
prefix itself, and either gives it away; here such a user reports ⊥ (`privacy.local_reports`), and
recall is lower for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.heavy_hitters import tree
from strategies.heavy_hitters.search import Search


@dataclass(kw_only=True)
class GTF(Search):
    """Every level is shared, later ones by more users."""

    population_weights = False

    def shared(self) -> int:
        return self.levels

    def shares(self) -> np.ndarray:
        return tree.linear_shares(self.levels)
