"""Distributed DP: clients add shares of integer noise, and secure aggregation shows only the sum.

    client k:  v_k = integers of clip_C(y_k − x);  y_k = v_k + share of noise  mod 2^b, masked
    server:    Σ_k y_k mod 2^b, centred, scaled back; divided by m

Kairouz, Liu and Steinke 2021 (arXiv:2102.06387) with discrete Gaussian noise, Agarwal, Kairouz and
Liu 2021 (arXiv:2110.04995) with Skellam noise; the arithmetic is `privacy.secure_aggregation`'s,
real and exact, with the bound on the integers' norm that holds whatever rounding did. Noise is
sized for the fewest clients whose sum is restored (`min_survivors`): with fewer, the round releases
nothing and the model stays.

The server picks who takes part, and is not trusted: nothing is gained from sampling, and a client
is charged for each round that it takes part in. Renyi accounting, as the papers have it.

Differs from the papers: one process holds all clients' secrets here (`privacy.masking`), so the
statement says that the protocol is simulated; a deployment is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.participation.sampling import FixedSize, Poisson
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting, Statement
from fedsim.records import Params, Replies
from privacy.accountant import calibrate, padding_cap
from privacy.accounted import most_rounds
from privacy.clipped_sum import ClippedSum
from privacy.events import DiscreteGaussian, Event, Skellam
from privacy.normal import KEYED_STATEMENT, keyed
from privacy.quantise import Lattice
from privacy.secure_aggregation import SecureAggregation
from privacy.updates import check_mean_only, clipped_rows, infinite, planned_clients


@dataclass(frozen=True, kw_only=True)
class DistributedDP(PrivacyPart):
    """Secure aggregation with distributed noise.

    Attributes:
        epsilon: Of all rounds that a client takes part in; noise is solved for it where
            `noise_multiplier` is null.
        delta: Of (ε, δ); below 1 over the number of clients.
        noise_multiplier: z, against the norm that rounding can leave.
        clip_norm: C.
        noise: The law of the shares.
        min_survivors: The fewest clients whose sum is restored, as a share of those planned.
        bits: b of the modulus.
        steps: How many steps of the integers the clipping norm is worth per √d; more is finer.
        rotate: Whether vectors are rotated first (a public random Hadamard rotation).
    """

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    noise: Literal["skellam", "discrete_gaussian"] = "skellam"
    min_survivors: Annotated[float, Range(gt=0, le=1)] = 0.5
    bits: Annotated[int, Range(ge=8, le=62)] = 32
    steps: Annotated[float, Range(gt=0)] = 4.0
    rotate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is None and self.noise_multiplier is None:
            raise ConfigError(
                "epsilon: null, and noise_multiplier is null too; set one of them, e.g. "
                "privacy.epsilon=8 or privacy.noise_multiplier=1"
            )

    def bind(self, setting: Setting) -> DistributedDPProtection:
        """See `PrivacyPart.bind`."""
        check_mean_only(setting, "privacy=distributed_dp")
        if setting.deployed:
            raise ConfigError(
                "privacy=distributed_dp: the masks are simulated in one process, so devices' "
                "updates would reach the server in the clear; on devices, use privacy=local_dp"
            )
        return DistributedDPProtection(self, setting)


class DistributedDPProtection(ClippedSum):
    """One run of `DistributedDP`."""

    def __init__(self, part: DistributedDP, setting: Setting) -> None:
        self.part, self.setting = part, setting
        self.planned_clients = planned_clients(setting)
        size, rounds = setting.update_size, most_rounds(setting)
        noise = part.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda z: [self._event(size, z).times(rounds)],
                epsilon=infinite(part.epsilon),
                delta=part.delta,
                relation="add_remove",
            )
        self.arithmetic = self._arithmetic(size, noise)
        claim = Statement(
            mechanism=f"secure aggregation of integers with shares of {part.noise} noise "
            f"(clipping to {part.clip_norm:g}, noise multiplier {noise:.4g}, modulo "
            f"2^{part.bits})",
            delta=part.delta,
            unit="user",
            relation="add_remove",
            trust=f"that at least {self.arithmetic.threshold} clients of a round are honest, and "
            "the aggregation protocol, which is simulated here",
            noise=f"exact integer noise, {KEYED_STATEMENT}",
            notes=("Scores of clients on their own held-out samples are not covered",),
        )
        super().__init__(
            name="privacy=distributed_dp",
            clip_norm=part.clip_norm,
            weight_cap=None,
            fresh=False,
            claim=claim,
            sampling="no sampling",
            events=[self._event(size, noise)],
            setting=setting,
            planned=rounds,
            budget=part.epsilon,
            per_client=True,
        )

    def _most_clients(self) -> int:
        sampling, count = self.setting.schedule.sampling(), self.setting.num_clients
        if isinstance(sampling, Poisson):
            return max(2, padding_cap(rate=sampling.rate, population=count))
        return max(2, sampling.size if isinstance(sampling, FixedSize) else count)

    def _arithmetic(self, size: int, noise_multiplier: float) -> SecureAggregation:
        part, most = self.part, self._most_clients()
        width = 2 ** (size - 1).bit_length() if part.rotate else size
        return SecureAggregation(
            lattice=Lattice(
                dimension=size,
                clip_norm=part.clip_norm,
                spacing=part.clip_norm / (part.steps * math.sqrt(width)),
                rotate=part.rotate,
            ),
            clients=most,
            threshold=min(most, max(2, math.ceil(part.min_survivors * self.planned_clients))),
            noise_multiplier=noise_multiplier,
            noise=part.noise,
            bits=part.bits,
        )

    def _event(self, size: int, noise_multiplier: float) -> Event:
        made = self._arithmetic(size, noise_multiplier)
        norms = {"l1_norm": made.lattice.l1_sensitivity, "l2_norm": made.lattice.sensitivity}
        if self.part.noise == "skellam":
            variance = made.threshold * made.share_sigma**2
            return Event(mechanism=Skellam(variance=variance, **norms))
        return Event(
            mechanism=DiscreteGaussian(
                sigma=made.share_sigma,
                shares=made.threshold,
                dimension=made.lattice.width,
                **norms,
            )
        )

    def total(self, server_round: int, params: Params, replies: Replies) -> Tensor:
        """See `ClippedSum.total`: the modular sum; zeros where too few have survived."""
        made = self.arithmetic
        signs = made.signs(self.seed, server_round)
        sum_d = np.zeros(made.lattice.width, np.uint64)
        survivors = 0
        for chunk in replies.chunks():
            for part in chunk.parts():
                rows_KP = clipped_rows(part, params, self.clip_norm).cpu().numpy()
                words = [
                    keyed(self.seed, server_round, int(client), "shares").words
                    for client in part.client_index
                ]
                encoded = made.encode(rows_KP, words, signs)
                sum_d = made.total(np.concatenate([sum_d[None], encoded]))
                survivors += len(part)
        device = next(iter(params.values())).device
        if not made.threshold <= survivors <= made.clients:
            size = made.lattice.dimension
            return torch.zeros(size, dtype=torch.float64, device=device)
        return torch.from_numpy(made.decode(sum_d, signs)).to(device)

    def noise(self, server_round: int, size: int) -> Tensor:
        """Not used: each client's share is in its integers already."""
        raise NotImplementedError
