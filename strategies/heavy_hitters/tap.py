"""TAP: target-aligning prefix trees (Zhang, Ye & Hu, SIGMOD 2025): a shared trie, then local ones.

    Phase I    h = 1..gs    all clients' groups report on common candidates;  f̂ = Σ (N_i/N) f̂_i;
                            the t_h largest are kept, t_h up to κk
    Phase II   h = gs+1..g  each client on its own candidates, from the shared trie on; k are kept
    Phase III               clients send their k best with N_i max(f̂, 0); added up; the k largest

    t_h: κk; or, with a slack z, adaptively: those within z standard deviations of the k-th largest,
    at least k, at most κk (in Phase II: κ' = `local_widening`)

gs + 1 rounds. With k-RR a wide domain raises the variance, so that a slack hurts at small ε; with
OUE it costs nothing.

Differs from the paper: its body was not at hand. Phases, alignment by a shared trie and adaptive
extension are those of its abstract and reviews; thresholds and defaults are a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Params
from strategies.heavy_hitters import tree
from strategies.heavy_hitters.search import Search


@dataclass(kw_only=True)
class TAP(Search):
    """Some levels are shared.

    Attributes:
        shared_levels: gs; null: 5 of every 12 levels, rounded down, but at least one.
        widening: κ: at shared levels up to κk candidates are kept.
        local_widening: The same at each client's own levels.
        slack: z; null keeps κk at every level.
    """

    shared_levels: Annotated[int, Range(ge=1)] | None = None
    widening: Annotated[float, Range(ge=1)] = 2.0
    local_widening: Annotated[float, Range(ge=1)] = 1.0
    slack: Annotated[float, Range(ge=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared() >= self.levels:
            raise ConfigError(
                f"shared_levels: {self.shared()} of {self.levels} levels; set fewer, e.g. "
                f"strategy.shared_levels={self._usual()}, or strategy=pem, which shares all of them"
            )

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        few = sizes_N.max(initial=0) < self.levels
        if few:
            raise ConfigError(
                f"{type(self).__name__}: no client has even one user for each of {self.levels} "
                "levels, so none can search by itself; use strategy=pem"
            )
        return super().begin(dataset, sizes_N)

    def shared(self) -> int:
        return self._usual() if self.shared_levels is None else self.shared_levels

    def _usual(self) -> int:
        return max(1, self.levels * 5 // 12)

    def width(self, estimates: np.ndarray, std: float, level: int) -> int:
        return tree.kept_count(
            estimates, k=self.k, widest=round(self.widening * self.k), slack=self.slack, std=std
        )

    def local_width(self, estimates: np.ndarray, std: float, level: int) -> int:
        widest = round(self.local_widening * self.k)
        return tree.kept_count(estimates, k=self.k, widest=widest, slack=self.slack, std=std)
