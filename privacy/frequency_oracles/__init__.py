"""Frequency oracles under local differential privacy: one file each, `choose` to get one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from privacy.frequency_oracles.base import OUT, Oracle, worst_ratio
from privacy.frequency_oracles.coins import Coins
from privacy.frequency_oracles.hadamard import Hadamard
from privacy.frequency_oracles.krr import KRR
from privacy.frequency_oracles.olh import OLH
from privacy.frequency_oracles.subset import Subset
from privacy.frequency_oracles.unary import OUE, SUE

__all__ = ["ORACLES", "OUT", "Coins", "Oracle", "OracleName", "choose", "worst_ratio"]

ORACLES: dict[str, type[Oracle]] = {
    oracle.name: oracle for oracle in (KRR, OUE, Hadamard, Subset, OLH, SUE)
}

OracleName = Literal["auto", "adaptive", "krr", "oue", "subset", "hadamard", "olh", "sue"]


def choose(name: OracleName, epsilon: float, candidates: np.ndarray) -> Oracle:
    """Return an oracle; `auto`: that of least variance for rare candidates, up to 2 %.

    Of several, the first of `ORACLES`, which is the cheapest. `adaptive`: k-RR or OUE, as in most
    of the literature, both of which are quick for any number of users. Depends on public things.
    """
    if name not in ("auto", "adaptive"):
        return ORACLES[name](epsilon, candidates)
    tried = ORACLES.values() if name == "auto" else (KRR, OUE)
    made = [oracle(epsilon, candidates) for oracle in tried]
    least = min(float(oracle.variance(1)) for oracle in made)
    return next(o for o in made if float(o.variance(1)) <= least * 1.02)
