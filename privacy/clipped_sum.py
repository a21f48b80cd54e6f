"""The run of a mechanism that gives the strategy one noisy mean of all clients' clipped updates.

A mechanism says what its noise is (`noise`), or adds up in a way of its own (`total`); clipping on
the clients, the public denominator and the single reply are here, once. See `privacy.updates` for
why the sum moves by at most C.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.runtime import ClientRuntime
from fedsim.protection import Setting, Statement
from fedsim.records import Params, Replies, Scalar
from privacy.accounted import Accounted
from privacy.events import Event
from privacy.normal import NoiseSource, keyed, system
from privacy.updates import (
    OneReply,
    check_sends_model_only,
    client_weights,
    clipped_rows,
    planned_clients,
    shrink_,
    unflatten,
)

CLIP_NORM = "clip-norm"


class ClippedSum(Accounted, abc.ABC):
    """One run.

    Args:
        name: Of the mechanism, for errors: `privacy=user_dp`.
        clip_norm: C of the first round.
        weight_cap: ŵ in samples, or None for equal weights.
        fresh: Whether noise is the operating system's.
        claim, sampling, events, setting, planned, budget, per_client: See `Accounted`.

    Attributes:
        clip_norm: C of the next round.
        denominator: m.
    """

    def __init__(
        self,
        *,
        name: str,
        clip_norm: float,
        weight_cap: float | None,
        fresh: bool,
        claim: Statement,
        sampling: str,
        events: Sequence[Event],
        setting: Setting,
        planned: int,
        budget: float | None,
        per_client: bool,
    ) -> None:
        super().__init__(
            claim=claim,
            sampling=sampling,
            events=events,
            setting=setting,
            planned=planned,
            budget=budget,
            per_client=per_client,
            population=setting.num_clients,
        )
        self.name, self.clip_norm, self.weight_cap = name, clip_norm, weight_cap
        self.fresh, self.seed = fresh, setting.seed
        self.denominator = planned_clients(setting)

    @property
    def public_examples(self) -> float:
        return 1.0

    @property
    def seals(self) -> bool:
        return True

    @property
    def replays(self) -> bool:
        return not self.fresh

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`."""
        check_sends_model_only(runtime, self.name)

    def told(self) -> Mapping[str, Scalar]:
        """See `Protection.told`: C."""
        return {CLIP_NORM: self.clip_norm}

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        """See `Protection.seal_`: clip."""
        clip_norm = float(told[CLIP_NORM])
        norms_K = shrink_(weights, start, clip_norm, client_weights(num_examples, self.weight_cap))
        return self.said(norms_K, clip_norm, next(iter(weights.values())).device)

    def said(self, norms_K: Tensor, clip_norm: float, device: torch.device) -> Params:
        """Return what clients say besides their update."""
        return {}

    def receive(self, server_round: int, params: Params, replies: Replies) -> Replies:
        """See `Protection.receive`."""
        total_P = self.total(server_round, params, replies)
        return OneReply(params, unflatten(total_P / self.denominator, params))

    def total(self, server_round: int, params: Params, replies: Replies) -> Tensor:
        """Return the noisy sum of the clipped updates, float64 `[P]`."""
        device = next(iter(params.values())).device
        size = sum(t.numel() for t in params.values() if t.is_floating_point())
        total_P = torch.zeros(size, dtype=torch.float64, device=device)
        for chunk in replies.chunks():
            for part in chunk.parts():
                total_P += clipped_rows(part, params, self.clip_norm).sum(0)
            self.heard(chunk.client_arrays, len(chunk))
        return total_P + self.noise(server_round, size).to(device)

    def heard(self, said: Params, count: int) -> None:
        """Take note of what some clients said besides their updates."""

    @abc.abstractmethod
    def noise(self, server_round: int, size: int) -> Tensor:
        """Return the round's noise on the sum, float64 `[P]`."""

    def source(self, server_round: int) -> NoiseSource:
        """Return where the server's noise of a round comes from."""
        if self.fresh:
            return system()
        return keyed(self.seed, server_round, seeds.SERVER, self.name)
