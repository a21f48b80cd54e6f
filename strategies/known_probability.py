"""Inverse-probability weights from known participation rates: the oracle that FedAU estimates.

    server:    x ← x + η · (1/N) · Σ_{k active} (y_k − x) / p_k

Wang & Ji (ICLR 2024, arXiv:2306.03401), baseline "known participation statistics".

Differs from the paper: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.records import Params, Replies, UpdateSum
from fedsim.strategy import FedsimStrategy, Round


@dataclass(kw_only=True)
class KnownProbability(FedsimStrategy):
    """Updates weighted by 1/p_k, over N.

    Attributes:
        server_lr: η.
        rates: p_k for each client, in (0, 1]; null takes them from the participation model.
    """

    server_lr: Annotated[float, Range(gt=0)] = 1.0
    rates: Annotated[list[float], Range(gt=0, le=1)] | None = None

    def aggregate(self, context: Round, replies: Replies) -> Params:
        rates_N = self._rates(context)
        total = UpdateSum(context.params)
        for chunk in replies.chunks():
            total.add(chunk.arrays, 1.0 / rates_N[chunk.client_index])
        return total.step(self.server_lr / context.num_clients)

    def _rates(self, context: Round) -> np.ndarray:
        if self.rates is None and self.federation is None:
            raise ConfigError(
                "rates: null, and no participation model to take them from; give one per client"
            )
        if self.rates is None and self.federation is not None:
            return self.federation.schedule.rates()
        if len(self.rates or ()) != context.num_clients:
            raise ConfigError(
                f"rates: {len(self.rates or ())} values for {context.num_clients} clients; "
                "give one per client, or null"
            )
        return np.array(self.rates, np.float64)
