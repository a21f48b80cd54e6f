"""DP-FTRL: correlated noise for clients that cannot be sampled.

    server:  x + (Σ_k u_k + zsC·(C⁻¹Z)_t) / m        Z fresh normals, C the encoder of the noise

Kairouz et al. 2021 (arXiv:2103.00039) by binary trees, Choquette-Choo et al. 2023
(arXiv:2211.06530) by banded matrices: noise that partly cancels from round to round, so that the
model, which feels the prefix sums of the rounds, sees less of it. The whole run is one Gaussian
release; its sensitivity s follows from how often one client takes part, and how far apart
(`privacy.matrix_noise`, with the proof). Both are read off the schedule, which is public and a
function of seed and round alone, and held against it again in every round.

Useful where who takes part is not secret: the best participation for it is `cyclic` or `full` with
few rounds. Clients' updates are clipped as in `privacy=user_dp`.

Differs from the papers: the server step is the strategy's, on the noisy mean, and not FTRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.errors import BudgetError, ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Setting, Statement
from privacy.accountant import calibrate
from privacy.clipped_sum import ClippedSum
from privacy.events import Event, Gaussian
from privacy.matrix_noise import CorrelatedNoise, RunningNoise
from privacy.normal import KEYED_STATEMENT, keyed
from privacy.updates import check_mean_only, infinite


@dataclass(frozen=True, kw_only=True)
class DPFTRL(PrivacyPart):
    """Correlated noise on the sum of whole clients' updates.

    Attributes:
        epsilon: For the whole run; noise is solved for it where `noise_multiplier` is null.
        delta: Of (ε, δ); below 1 over the number of clients.
        noise_multiplier: z, relative to the encoder's sensitivity times C.
        clip_norm: C.
        factorisation: `banded` or `tree`.
        bands: Of `banded`; null for as many as two rounds of one client are apart.
        restart: Of `tree`: rounds per tree; null for one tree.
        weight_cap: ŵ: an update counts min(n_k / ŵ, 1); null for all alike.
    """

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    factorisation: Literal["banded", "tree"] = "banded"
    bands: Annotated[int, Range(ge=1)] | None = None
    restart: Annotated[int, Range(ge=1)] | None = None
    weight_cap: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ConfigError(
                f"epsilon={self.epsilon} and noise_multiplier={self.noise_multiplier}: set one of "
                "them, and the other to null; all of the run's noise is settled before it begins"
            )

    def bind(self, setting: Setting) -> DPFTRLProtection:
        """See `PrivacyPart.bind`."""
        check_mean_only(setting, "privacy=dp_ftrl")
        if setting.deployed:
            raise ConfigError(
                "privacy=dp_ftrl: its noise returns in later rounds, and would have to outlive the "
                "server's process; on devices, use privacy=user_dp or local_dp"
            )
        most, apart = participation(setting)
        correlated = CorrelatedNoise(
            kind=self.factorisation,
            rounds=setting.rounds,
            max_participations=most,
            min_separation=apart,
            bands=self.bands,
            restart=self.restart,
        )
        noise = self.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda z: [Event(mechanism=Gaussian(noise_multiplier=z))],
                epsilon=infinite(self.epsilon),
                delta=self.delta,
                relation="add_remove",
            )
        claim = Statement(
            mechanism=f"clipping each client's update to {self.clip_norm:g} and correlated noise "
            f"on their sums ({self.factorisation}, noise multiplier {noise:.4g} at sensitivity "
            f"{correlated.sensitivity:.4g})",
            delta=self.delta,
            unit="user",
            relation="add_remove",
            trust="the server, which sees each client's clipped update and adds the noise",
            noise=KEYED_STATEMENT,
            notes=("Scores of clients on their own held-out samples are not covered",),
        )
        return DPFTRLProtection(
            self,
            correlated=correlated,
            noise_multiplier=noise,
            fresh=False,
            claim=claim,
            sampling=f"no sampling: one release of all {setting.rounds} rounds, in at most {most} "
            f"of which a client takes part, at least {apart} apart",
            events=[Event(mechanism=Gaussian(noise_multiplier=noise))],
            setting=setting,
            planned=1,
            per_client=False,
        )


class DPFTRLProtection(ClippedSum):
    """One run of `DPFTRL`; further arguments are those of `ClippedSum`."""

    def __init__(
        self, part: DPFTRL, *, correlated: CorrelatedNoise, noise_multiplier: float, **run: Any
    ) -> None:
        super().__init__(
            name="privacy=dp_ftrl",
            clip_norm=part.clip_norm,
            weight_cap=part.weight_cap,
            budget=None,
            **run,
        )
        self.correlated, self.noise_multiplier = correlated, noise_multiplier
        count = run["setting"].num_clients
        self._times_N, self._last_N = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._running: RunningNoise | None = None
        self._next = 1

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: the whole run's event first, then who takes part."""
        if server_round == 0:
            return super().releases(1, clients)
        return ({"clients": clients.tolist()},)

    def afford(self, lines: Sequence[Line]) -> None:
        """See `Protection.afford`: no round but those that the noise was made for."""
        for line in lines:
            server_round, clients = line["round"], np.array(line.get("clients", []), np.int64)
            if server_round > self.correlated.rounds:
                raise BudgetError(
                    f"privacy=dp_ftrl: the noise was made for {self.correlated.rounds} rounds; to "
                    "run longer, start a run with more of them"
                )
            seen = self._last_N[clients] > 0
            near = seen & (server_round - self._last_N[clients] < self.correlated.min_separation)
            often = self._times_N[clients] >= self.correlated.max_participations
            if len(clients) and bool((near | often).any()):
                raise BudgetError(
                    f"privacy=dp_ftrl: client {int(clients[near | often][0])} would take part more "
                    f"often than the noise allows for (at most {self.correlated.participations} "
                    f"times, {self.correlated.min_separation} rounds apart)"
                )

    def record(self, line: Line) -> None:
        """See `Protection.record`."""
        if "events" in line:
            super().record(line)
            return
        clients = np.array(line["clients"], np.int64)
        self._times_N[clients] += 1
        self._last_N[clients] = line["round"]

    def noise(self, server_round: int, size: int) -> Tensor:
        """See `ClippedSum.noise`; rows of Z are keyed, so any round can be made again."""
        if not self.noise_multiplier:
            return torch.zeros(size, dtype=torch.float64)

        def draw(row: int) -> Tensor:
            source = keyed(self.seed, row, seeds.SERVER, "dp-ftrl")
            return source.normal(size, dtype=torch.float64)

        if self._running is None or self._next != server_round:
            self._running = self.correlated.start(draw)
            for earlier in range(1, server_round):
                self._running(earlier)
        self._next = server_round + 1
        std = self.noise_multiplier * self.correlated.sensitivity * self.clip_norm
        return self._running(server_round) * std


def participation(setting: Setting) -> tuple[int, int]:
    """Return (in how many rounds a client takes part at most, how far apart at least)."""
    if setting.smoke:
        return 1, 1
    times_N = np.zeros(setting.num_clients, np.int64)
    last_N = np.zeros(setting.num_clients, np.int64)
    apart = setting.rounds
    for server_round in range(1, setting.rounds + 1):
        clients = setting.schedule.select(server_round)
        again = last_N[clients] > 0
        if again.any():
            apart = min(apart, server_round - int(last_N[clients][again].max()))
        times_N[clients] += 1
        last_N[clients] = server_round
    return max(1, int(times_N.max())), max(1, apart)
