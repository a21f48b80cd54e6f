"""Pooled PEM (Wang, Li & Jha 2019, arXiv:1708.06674): one prefix tree for all users together.

    level h = 1..g, a group of N/g users each:  f̂ on C_{h−1} × {0,1}^s;  C_h = the k largest

The reference of what federated methods can reach: all clients' reports are counted together at
every level, weighed by their users.

Differs from the paper: the levels' groups are equal, and the k largest go on at each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from strategies.heavy_hitters.search import Search


@dataclass(kw_only=True)
class PEM(Search):
    """Every level is shared."""

    def shared(self) -> int:
        return self.levels
