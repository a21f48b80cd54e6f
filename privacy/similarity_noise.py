"""Noise on sums that answer similarity queries (strategy=kernel_density; arXiv:2403.08917).

One sum over all records is released, once:  S = Σ_k Σ_{x of client k} φ(x) + noise.

Claim: (ε, δ)-DP for one record, or ε-DP for Laplace noise. φ is public, and bounds what a record
can do to S; each summary proves its bound (`privacy.similarity`). All else is post-processing:
any number of queries, any choice of them.
    replace_one  each client's number of records is public anyway: it stays as it is
    add_remove   the same numbers are taken as public, which the statement says

trust:  central      the server adds the noise
        distributed  each client adds a share, N(0, (z C)²/m): of the sum of ≥ m shares the noise
                     has at least the claimed size. With fewer nothing is released. Gaussian only
        local        each client adds all of it to its own sum, which protects its records from
                     everybody; the sum of P clients has √P times the noise

A client's answer is kept (`fedsim.client.answers`): nobody draws noise for it twice.

Differs from the paper: it has the trusted curator alone.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from fedsim import seeds
from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting, Statement
from fedsim.protection.statement import Relation
from fedsim.query import QueryStrategy
from privacy.accounted import Accounted, check_one_holder, is_fresh
from privacy.events import Event
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, NoiseSource, keyed, system
from privacy.similarity.base import Summary
from privacy.similarity.noise import Law, Noise, noise_for


@dataclass(kw_only=True)
class Adding(QueryStrategy, abc.ABC):
    """A strategy whose clients send one sum each, of the summary that it has begun with.

    Attributes:
        noise: What is added to their sums, and by whom; nothing until a mechanism is bound.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.noise = SumNoise()

    @property
    @abc.abstractmethod
    def sketch(self) -> Summary:
        """Its public parameters, once begun."""


class SumNoise:
    """Who adds which noise; this one adds none."""

    min_clients = 1
    """The fewest clients whose sum may be opened."""

    def of_client(self, summary: Summary, sums_F: Tensor, server_round: int, client: int) -> Tensor:
        """Return what a client sends for its sum."""
        return sums_F

    def of_server(self, summary: Summary, sums_F: Tensor, server_round: int) -> Tensor:
        """Return what the server releases for the sum of what it got."""
        return sums_F

    def released(self, clients: int) -> Noise | None:
        """Return all the noise in the sum of so many clients."""
        return None


class Calibrated(SumNoise):
    """Noise of a size that was solved for.

    Args:
        noise: Of one release.
        trust: Who adds it; see this file's header.
        shares: m.
        seed: Of keyed noise; None for the operating system's.
    """

    def __init__(self, noise: Noise, trust: str, shares: int, seed: int | None) -> None:
        self.noise, self.trust, self.shares, self.seed = noise, trust, shares, seed
        self.min_clients = shares if trust == "distributed" else 1

    def of_client(self, summary: Summary, sums_F: Tensor, server_round: int, client: int) -> Tensor:
        """See `SumNoise.of_client`."""
        if self.trust == "central":
            return sums_F
        source = self._source(server_round, client, "similarity-share")
        share = self.shares if self.trust == "distributed" else 1
        return sums_F + self.noise.draw(summary, source, share=share).to(sums_F.device)

    def of_server(self, summary: Summary, sums_F: Tensor, server_round: int) -> Tensor:
        """See `SumNoise.of_server`."""
        if self.trust != "central":
            return sums_F
        source = self._source(server_round, seeds.SERVER, "similarity")
        return sums_F + self.noise.draw(summary, source).to(sums_F.device)

    def released(self, clients: int) -> Noise:
        """See `SumNoise.released`."""
        times = {"central": 1.0, "local": clients, "distributed": clients / self.shares}
        scale = self.noise.scale * math.sqrt(times[self.trust])
        return Noise(law=self.noise.law, scale=scale)

    def _source(self, server_round: int, client: int, purpose: str) -> NoiseSource:
        return system() if self.seed is None else keyed(self.seed, server_round, client, purpose)


@dataclass(frozen=True, kw_only=True)
class SimilarityNoise(PrivacyPart):
    """Noise on the sum of a strategy that adds up features of records.

    Attributes:
        epsilon: ε.
        delta: δ of Gaussian noise; below 1 over the number of records.
        noise: The law.
        relation: Neighbouring data sets: one record replaced, or one more or less.
        trust: See this file's header.
        min_survivors: With `distributed`: m; null for all clients.
        noise_source: As in `privacy=user_dp`.
    """

    protects_answers = True

    epsilon: Annotated[float, Range(gt=0, lt=math.inf)] = 1.0
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise: Law = "gaussian"
    relation: Relation = "replace_one"
    trust: Literal["central", "distributed", "local"] = "central"
    min_survivors: Annotated[int, Range(ge=1)] | None = None
    noise_source: Literal["auto", "keyed", "system"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trust == "distributed" and self.noise == "laplace":
            raise ConfigError(
                "noise: laplace noise cannot be dealt out in shares; use privacy.noise=gaussian, "
                "or privacy.trust=central"
            )

    def bind(self, setting: Setting) -> SimilarityProtection:
        """See `PrivacyPart.bind`."""
        strategy = setting.strategy
        if not isinstance(strategy, Adding):
            raise ConfigError(
                f"strategy: {type(strategy).__name__} does not send sums of features, which "
                "privacy=similarity_noise adds noise to; use strategy=kernel_density, or another "
                "mechanism"
            )
        if self.trust == "distributed" and setting.deployed:
            raise ConfigError(
                "trust: distributed noise protects the sum alone, and secure aggregation of it is "
                "simulated in one process; on devices use privacy.trust=local or central"
            )
        least = self.min_survivors or setting.num_clients
        if least > setting.num_clients:
            raise ConfigError(
                f"min_survivors: {least}, but there are {setting.num_clients} clients; set at most "
                "that many"
            )
        return SimilarityProtection(self, strategy, setting, least)


class SimilarityProtection(Accounted):
    """One run of `SimilarityNoise`."""

    def __init__(
        self, part: SimilarityNoise, strategy: Adding, setting: Setting, least: int
    ) -> None:
        self.fresh = is_fresh(part.noise_source, deployed=setting.deployed)
        summary = strategy.sketch
        delta = 0.0 if part.noise == "laplace" else part.delta
        noise = noise_for(
            summary, part.noise, epsilon=part.epsilon, delta=delta, relation=part.relation
        )
        event: Event = noise.event(summary, part.relation)
        strategy.noise = Calibrated(noise, part.trust, least, None if self.fresh else setting.seed)
        sensitivity = (summary.l1 if part.noise == "laplace" else summary.l2)(part.relation)
        trust = {
            "central": "the server, which sees each client's sum and adds the noise",
            "local": "none but each client itself",
            "distributed": f"that at least {least} clients are honest and keep their shares of the "
            "noise to themselves, and secure aggregation of their sums, which is simulated here",
        }
        notes = [
            "Taken as public: how many records each client holds",
            "Scores compare with the exact answers, as only a simulation can, and are not covered",
        ]
        super().__init__(
            claim=Statement(
                mechanism=f"{part.noise} noise of scale {noise.scale:.4g} on one sum of "
                f"{summary.size} features of every record ({type(summary).__name__}, sensitivity "
                f"{sensitivity:.4g})",
                delta=delta,
                unit="example",
                relation=part.relation,
                trust=trust[part.trust],
                noise=SYSTEM_STATEMENT if self.fresh else KEYED_STATEMENT,
                notes=tuple(notes),
            ),
            sampling="no sampling",
            events=[event],
            setting=setting,
            planned=1,
            budget=part.epsilon,
            per_client=False,
            population=len(setting.dataset.train_y) if delta else None,
        )

    @property
    def replays(self) -> bool:
        return not self.fresh

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`: each record must be added up by one client, and once."""
        super().check(runtime)
        check_one_holder(runtime, "records")
