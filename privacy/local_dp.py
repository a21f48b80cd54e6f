"""User-level DP without trust: each client clips its update and adds the noise itself.

    client k:  u_k = clip_C(y_k − x) + zC·N(0, I)

Each client's every message is a Gaussian mechanism of its own data: whoever sees it, the server
included, learns (ε, δ) about the client in all the rounds that it takes part in together. Any
strategy may do with the updates what it likes. Replacing a client's data moves u_k by at most 2C.

Source: the Gaussian mechanism with composition over rounds; noise is solved for by its exact
privacy profile (Balle and Wang 2018, arXiv:1805.06530), not by the classical σ = Δ√(2 ln 1.25/δ)/ε,
which is false for ε > 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting, Statement
from fedsim.records import Params, Scalar
from privacy.accountant import calibrate
from privacy.accounted import Accounted, is_fresh, most_rounds
from privacy.events import Event, Gaussian
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, keyed, system
from privacy.updates import (
    check_sends_model_only,
    client_weights,
    float_names,
    infinite,
    shrink_,
)


@dataclass(frozen=True, kw_only=True)
class LocalDP(PrivacyPart):
    """Noise on each client's update.

    `noise_multiplier` or `epsilon` must be set; with both, the run ends before the round that would
    cross `epsilon`.

    Attributes:
        epsilon: Of all rounds that a client takes part in.
        delta: Of (ε, δ).
        noise_multiplier: z, the noise's standard deviation over C.
        clip_norm: C.
        weight_cap: ŵ: an update counts min(n_k / ŵ, 1); null for all alike.
        noise_source: As in `privacy=user_dp`.
    """

    hides_sizes = True
    releases_on_client = True

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    weight_cap: Annotated[float, Range(gt=0)] | None = None
    noise_source: Literal["auto", "keyed", "system"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is None and self.noise_multiplier is None:
            raise ConfigError(
                "epsilon: null, and noise_multiplier is null too; set one of them, e.g. "
                "privacy.epsilon=8 or privacy.noise_multiplier=5"
            )

    def bind(self, setting: Setting) -> LocalDPProtection:
        """See `PrivacyPart.bind`."""
        rounds = most_rounds(setting)
        noise = self.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda z: [Event(mechanism=Gaussian(noise_multiplier=z), count=rounds)],
                epsilon=infinite(self.epsilon),
                delta=self.delta,
                relation="replace_one",
            )
        fresh = is_fresh(self.noise_source, deployed=setting.deployed)
        claim = Statement(
            mechanism=f"clipping to {self.clip_norm:g} and Gaussian noise on each client's update "
            f"(noise multiplier {noise:.4g})",
            delta=self.delta,
            unit="user",
            relation="replace_one",
            trust="none but each client itself",
            noise=SYSTEM_STATEMENT if fresh else KEYED_STATEMENT,
            notes=("Scores of clients on their own held-out samples are not covered",),
        )
        return LocalDPProtection(
            self,
            noise_multiplier=noise,
            fresh=fresh,
            claim=claim,
            events=[Event(mechanism=Gaussian(noise_multiplier=noise))],
            setting=setting,
            planned=rounds,
        )


class LocalDPProtection(Accounted):
    """One run of `LocalDP`."""

    def __init__(
        self,
        part: LocalDP,
        *,
        noise_multiplier: float,
        fresh: bool,
        claim: Statement,
        events: Sequence[Event],
        setting: Setting,
        planned: int,
    ) -> None:
        super().__init__(
            claim=claim,
            sampling="no sampling",
            events=events,
            setting=setting,
            planned=planned,
            budget=part.epsilon,
            per_client=True,
        )
        self.part, self.noise_multiplier = part, noise_multiplier
        self.fresh, self.seed = fresh, setting.seed

    public_examples = 1.0
    seals = True

    @property
    def replays(self) -> bool:
        return not self.fresh

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`."""
        check_sends_model_only(runtime, "privacy=local_dp")

    @torch.no_grad()
    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        """See `Protection.seal_`: clip, and add noise."""
        shrink_(
            weights, start, self.part.clip_norm, client_weights(num_examples, self.part.weight_cap)
        )
        names = float_names(start)
        sizes = [start[name].numel() for name in names]
        std = self.noise_multiplier * self.part.clip_norm
        for row, client in enumerate(clients):
            source = (
                system() if self.fresh else keyed(self.seed, server_round, int(client), "local")
            )
            parts = torch.split(source.normal(sum(sizes), dtype=torch.float64), sizes)
            for name, noise in zip(names, parts, strict=True):
                target = weights[name][row]
                target.add_(noise.view(target.shape).to(target.device, target.dtype), alpha=std)
        return {}
