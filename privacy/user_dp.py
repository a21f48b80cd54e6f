"""User-level DP with a trusted server: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, Alg. 1).

    client k:  u_k = w_k · clip_C(y_k − x)
    server:    x + (Σ_k u_k + zC·N(0, I)) / m       to the strategy, as if it were one client

The sensitivity is proved in `privacy.updates`. What a round costs follows from how its clients are
drawn, as the participation model itself says: Poisson (`participation=bernoulli`), a fixed number
(`uniform`; far more expensive), or no sampling (all others), where a client is charged for each
round that it takes part in.

clipping:  fixed       C stays
           adaptive    C follows a quantile of the clients' norms: Andrew et al. 2021
                       (arXiv:1905.03871); each client also sends 1[‖y_k − x‖ ≤ C], whose noisy mean
                       is released; the sum gets z_Δ > z so that both together cost z

Differs from the paper: noise is relative to the clipped *sum* (their S = C/(qW) on the mean is the
same); weights are capped by a public ŵ and the denominator is the planned number of clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.participation.sampling import Unsampled
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting, Statement
from fedsim.protection.statement import Relation
from fedsim.records import Params
from privacy.accountant import calibrate
from privacy.accounted import is_fresh, most_rounds
from privacy.clipped_sum import ClippedSum
from privacy.clipping import next_bound, noisy_fraction, update_multiplier
from privacy.events import Event, Gaussian
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, NoiseSource
from privacy.updates import check_mean_only, infinite, relation_of

WITHIN = "within-clip-norm"


@dataclass(frozen=True, kw_only=True)
class UserDP(PrivacyPart):
    """DP-FedAvg.

    `noise_multiplier` or `epsilon` must be set; with both, the run ends before the round that would
    cross `epsilon`.

    Attributes:
        epsilon: For the whole run; noise is solved for it where `noise_multiplier` is null.
        delta: Of (ε, δ); below 1 over the number of clients.
        noise_multiplier: z, the noise's standard deviation over C.
        clip_norm: C; with `adaptive`, of the first round.
        clipping: See this file's header.
        relation: Null for what the sampling has: replace_one for cohorts of fixed size, add_remove
            for all others.
        weight_cap: ŵ, in samples; null for equal weights.
        noise_source: `keyed` (repeatable), `system` (the operating system's generator), or `auto`:
            keyed in simulation, system in a deployment.
        target_quantile, clip_lr, count_noise: With `adaptive`; `count_noise` null for the planned
            number of clients / 20, as the paper has it, but at least z.
    """

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    clipping: Literal["fixed", "adaptive"] = "fixed"
    relation: Relation | None = None
    weight_cap: Annotated[float, Range(gt=0)] | None = None
    noise_source: Literal["auto", "keyed", "system"] = "auto"
    target_quantile: Annotated[float, Range(gt=0, lt=1)] = 0.5
    clip_lr: Annotated[float, Range(gt=0)] = 0.2
    count_noise: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is None and self.noise_multiplier is None:
            raise ConfigError(
                "epsilon: null, and noise_multiplier is null too; set one of them, e.g. "
                "privacy.epsilon=4 or privacy.noise_multiplier=1"
            )

    def bind(self, setting: Setting) -> UserDPProtection:
        """See `PrivacyPart.bind`."""
        check_mean_only(setting, "privacy=user_dp")
        sampling = setting.schedule.sampling()
        relation = relation_of(self.relation, sampling)
        per_client = isinstance(sampling, Unsampled)
        rounds = most_rounds(setting) if per_client else setting.rounds

        def events(noise: float) -> list[Event]:
            return [Event(mechanism=Gaussian(noise_multiplier=noise), sampling=sampling)]

        noise = self.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda z: [event.times(rounds) for event in events(z)],
                epsilon=infinite(self.epsilon),
                delta=self.delta,
                relation=relation,
            )
        fresh = is_fresh(self.noise_source, deployed=setting.deployed)
        claim = Statement(
            mechanism=f"clipping each client's update ({self.clipping}, from {self.clip_norm:g}) "
            f"and Gaussian noise on their sum (noise multiplier {noise:.4g})",
            delta=self.delta,
            unit="user",
            relation=relation,
            trust="the server, which sees each client's clipped update and adds the noise",
            noise=SYSTEM_STATEMENT if fresh else KEYED_STATEMENT,
            notes=("Scores of clients on their own held-out samples are not covered",),
        )
        return UserDPProtection(
            self,
            noise_multiplier=noise,
            fresh=fresh,
            claim=claim,
            sampling=str(sampling),
            events=events(noise),
            setting=setting,
            planned=rounds,
            per_client=per_client,
        )


class UserDPProtection(ClippedSum):
    """One run of `UserDP`; the arguments are those of `ClippedSum`."""

    def __init__(self, part: UserDP, *, noise_multiplier: float, **run: Any) -> None:
        super().__init__(
            name="privacy=user_dp",
            clip_norm=part.clip_norm,
            weight_cap=part.weight_cap,
            budget=part.epsilon,
            **run,
        )
        self.part, self.adaptive = part, part.clipping == "adaptive"
        self.count_noise = part.count_noise or max(self.denominator / 20, noise_multiplier)
        self.noise_multiplier = noise_multiplier
        if self.adaptive:
            self.noise_multiplier = update_multiplier(noise_multiplier, self.count_noise)
        self._within = self._answered = 0

    def said(self, norms_K: Tensor, clip_norm: float, device: torch.device) -> Params:
        """See `ClippedSum.said`: whether one was within the norm."""
        if not self.adaptive:
            return {}
        return {WITHIN: (norms_K <= clip_norm).to(device, torch.float32).unsqueeze(1)}

    def sealed_like(self) -> Params:
        """See `Protection.sealed_like`."""
        return {WITHIN: torch.zeros(1)} if self.adaptive else {}

    def heard(self, said: Params, count: int) -> None:
        """See `ClippedSum.heard`; each client counts once at most, whatever it says."""
        if self.adaptive:
            self._within += int((said[WITHIN] > 0.5).sum())
            self._answered += count

    def noise(self, server_round: int, size: int) -> Tensor:
        """See `ClippedSum.noise`; with `adaptive`, also moves C."""
        source = self.source(server_round)
        if not self.noise_multiplier:
            noise_P = torch.zeros(size, dtype=torch.float64)
        else:
            std = self.noise_multiplier * self.clip_norm
            noise_P = source.normal(size, dtype=torch.float64).mul_(std)
        if self.adaptive:
            self._move_clip(source)
        return noise_P

    def _move_clip(self, source: NoiseSource) -> None:
        noise = float(source.normal(1, dtype=torch.float64)) * self.count_noise
        fraction = noisy_fraction(
            self._within,
            self._answered,
            max(1, round(self.denominator)),
            noise if self.noise_multiplier else 0.0,
        )
        self._within = self._answered = 0
        self.clip_norm = next_bound(
            self.clip_norm,
            fraction,
            quantile=self.part.target_quantile,
            learning_rate=self.part.clip_lr,
        )

    def state_dict(self) -> dict[str, Any]:
        """See `Protection.state_dict`."""
        return {"clip_norm": self.clip_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Protection.load_state_dict`."""
        self.clip_norm = float(state["clip_norm"])
