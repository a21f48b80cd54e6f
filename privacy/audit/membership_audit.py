"""`audit=membership`: which of a client's samples was it trained on?

LiRA, Carlini et al. 2022 (arXiv:2112.03570), and the loss threshold of Yeom et al. 2018
(arXiv:1709.01604), against the client that takes part most often. The adversary sees the model that
the client gets in each round and the one that it sends, as everyone may under an example-level
claim, and trains shadow models from the former. Each round is a likelihood ratio of its own:

    Λ = Σ_t ln p(y_t | x_t, in) / p(y_t | x_t, out)

The client trains on a random half of its samples, by a fair coin of each, and so do all others. To
see rare errors more often than one run shows them, further targets are trained from the same models
as the client, which no shadow model ever sees.

A claim is refuted if, of the r samples over all targets that look most like members, too many are
for the ledger's trade-off curve: the one-run test of Mahloujifar et al. 2024 (arXiv:2410.22235),
all guesses "in", which is what a true positive rate at a small false positive rate is about. It
holds whatever the samples have to do with each other; the intervals of the rates do not, quite, and
say how finely these were measured.

Shapes: K models, of which T targets and S shadows; N samples; R rounds.

Differs from the papers: several rounds; shadow models start where the client did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from fedsim import seeds
from fedsim.auditing import Audit, AuditPart, Verdict
from fedsim.client.gradient import GradientEstimator
from fedsim.client.runtime import ClientRuntime
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, Protection
from fedsim.records import Params, Scalar
from fedsim.simulation import Simulation
from fedsim.strategy import FedsimStrategy
from privacy.audit import one_run
from privacy.audit.claim import busiest, claim_of
from privacy.audit.delegate import Delegate
from privacy.audit.membership import lira
from privacy.audit.rates import Attack, MembershipFindings
from privacy.audit.tradeoff import gdp_epsilon
from privacy.audit.twins import PartOfSamples, Twins
from privacy.updates import check_sends_model_only

NAME = "audit=membership"
FEWEST_SAMPLES = 100
_FEWEST_A_SIDE = 2
_UNCLAIMED_DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class MembershipAudit(AuditPart):
    """Membership inference.

    Attributes:
        targets: T, models under attack, of which the first is the run's own.
        shadows: S.
        guesses: r, of the N T samples of all targets; null for a fiftieth. Fixed before anything is
            seen.
        confidence: That a true claim is not refuted.
    """

    targets: Annotated[int, Range(ge=1)] = 16
    shadows: Annotated[int, Range(ge=8)] = 32
    guesses: Annotated[int, Range(ge=1)] | None = None
    confidence: Annotated[float, Range(gt=0.5, lt=1)] = 0.99

    def plant(self, simulation: Simulation, inner: Protection) -> Audit:
        statement, dataset = inner.planned(), simulation.dataset
        if statement.private and statement.unit != "example":
            raise ConfigError(
                f"{NAME}: the claim is per {statement.unit}, and this attacks what one client "
                "sends, per example; use privacy=dp_sgd, or audit=canaries"
            )
        if dataset.task != "classification" or dataset.train_y.dim() != 1:
            raise ConfigError(f"{NAME}: one class per sample is needed, e.g. data=digits")
        client = busiest(simulation)
        samples = int(simulation.partition.sizes(np.array([client]))[0])
        if simulation.partition_part.holdout:
            raise ConfigError(
                f"{NAME}: which samples a client holds out would be one more draw to condition on; "
                "set partition.holdout=0"
            )
        if samples < FEWEST_SAMPLES:
            raise ConfigError(
                f"{NAME}: client {client} holds {samples} samples, which show little; at "
                f"least {FEWEST_SAMPLES} are needed: set fewer clients, e.g. "
                "partition=iid partition.num_clients=1 participation=full"
            )
        if self.guesses is not None and self.guesses > self.targets * samples:
            raise ConfigError(
                f"audit.guesses: {self.guesses} of {self.targets * samples} samples of all "
                f"targets; expected at most that, e.g. {self.targets * samples // 50}"
            )
        strategy = simulation.strategy
        if isinstance(strategy, FedsimStrategy) and (
            type(strategy).client_payload is not FedsimStrategy.client_payload
        ):
            raise ConfigError(
                f"{NAME}: {type(strategy).__name__} sends each client more than the model; shadow "
                "models are sent the model alone: use strategy=fedavg or fedprox"
            )
        seed = simulation.settings.seed
        return _Running(self, seed, inner, client, self._halves(seed, samples))

    def _halves(self, seed: int, samples: int) -> np.ndarray:
        """Return which samples each model is trained on, `[K, N]`, by fair coins.

        A sample that hardly any shadow model has, or lacks, gets new coins of all of them: the
        attack fits a normal to each side. The targets' coins stay as they fell.
        """

        def rng(purpose: str) -> np.random.Generator:
            return seeds.rng(seed, 0, seeds.SERVER, f"audit-{purpose}")

        target_TN = rng("members").random((self.targets, samples)) < 0.5
        coins = rng("shadows")
        shadow_SN = coins.random((self.shadows, samples)) < 0.5
        fewest = _FEWEST_A_SIDE
        while len(again := np.flatnonzero(_lonely(shadow_SN, fewest))):
            shadow_SN[:, again] = coins.random((self.shadows, len(again))) < 0.5
        return np.concatenate([target_TN, shadow_SN])


def _lonely(member_SN: np.ndarray, fewest: int) -> np.ndarray:
    count_N = member_SN.sum(axis=0)
    lonely_N: np.ndarray = np.minimum(count_N, len(member_SN) - count_N) < fewest
    return lonely_N


class _Watched(Delegate):
    """The mechanism, whose one client trains on a part of its samples and is looked at."""

    def __init__(self, inner: Protection, client: int, member_KN: np.ndarray) -> None:
        super().__init__(inner)
        self.client, self.member_KN = client, member_KN
        part = {client: np.flatnonzero(member_KN[0])}
        self._estimator = PartOfSamples(inner.estimator, part)
        self.phi: list[np.ndarray] = []
        """Of each round that the client took part in, `[K, N]`."""

    @property
    def estimator(self) -> GradientEstimator:
        return self._estimator

    @property
    def seals(self) -> bool:
        return True

    def check(self, runtime: ClientRuntime) -> None:
        check_sends_model_only(runtime, NAME)
        if runtime.half.full_gradient or runtime.half.personal:
            raise ConfigError(
                f"{NAME}: clients of {type(runtime.half).__name__} do more than train the model "
                "that they get; use strategy=fedavg or fedprox"
            )
        super().check(runtime)
        self.twins = Twins(runtime, self.inner, self.client, self.member_KN)

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        sent: Params = {}
        if self.inner.seals:
            sent = self.inner.seal_(weights, start, clients, server_round, num_examples, told)
        for row in np.flatnonzero(clients == self.client):
            own = {name: tensor[row] for name, tensor in weights.items()}
            self.phi.append(self.twins.train(server_round, start, own))
        return sent


class _Running(Audit):
    protection: _Watched

    def __init__(
        self,
        part: MembershipAudit,
        seed: int,
        inner: Protection,
        client: int,
        member_KN: np.ndarray,
    ) -> None:
        self.part, self.seed, self.member_KN = part, seed, member_KN
        self.protection = _Watched(inner, client, member_KN)

    def planted(self) -> dict[str, Any]:
        protection, part = self.protection, self.part
        return {
            "seed": self.seed,
            "client": protection.client,
            "members": self.member_KN[0].astype(int).tolist(),
            "models": {"targets": part.targets, "shadows": part.shadows},
        }

    def conclude(self, initial: Params, final: Params, ledger: Sequence[Line]) -> Verdict:
        part, protection = self.part, self.protection
        if not protection.phi:
            raise ConfigError(f"{NAME}: client {protection.client} never took part; set rounds")
        member_TN = self.member_KN[: part.targets]
        score = {
            "LiRA": _lira(np.stack(protection.phi), self.member_KN, part.targets),
            "loss threshold": protection.phi[-1][: part.targets],
        }
        statement = protection.statement()
        claim = claim_of(statement, ledger, protection.client) if statement.private else None
        m = member_TN.size
        r = part.guesses or max(1, m // 50)
        p = 1 - part.confidence
        v = first_right(score["LiRA"].ravel(), member_TN.ravel(), r)
        delta = statement.delta if claim else _UNCLAIMED_DELTA
        found = one_run.OneRun(
            canaries=m,
            guesses=r,
            correct=v,
            epsilon_steinke=one_run.epsilon_bound(m, r, v, delta=delta, p=p),
            mu=(mu := one_run.mu_bound(m, r, v, p=p)),
            epsilon_gdp=gdp_epsilon(delta, mu),
            delta=delta,
            confidence=part.confidence,
        )
        return MembershipFindings(
            claim=claim,
            found=found,
            refuted=claim is not None and one_run.refutes(claim.fpr, m, r, v, p=p),
            attacks=tuple(Attack.of(name, score_TN, member_TN) for name, score_TN in score.items()),
            client=protection.client,
            rounds=len(protection.phi),
            shadows=part.shadows,
        ).verdict()


def first_right(score_M: np.ndarray, member_M: np.ndarray, guesses: int) -> int:
    """Return how many of the `guesses` highest scores are members'; equal ones go by index."""
    order_M = np.argsort(-score_M, kind="stable")
    return int(member_M[order_M[:guesses]].sum())


def _lira(phi_RKN: np.ndarray, member_KN: np.ndarray, targets: int) -> np.ndarray:
    """Return Λ of every sample under every target, `[T, N]`, summed over rounds."""
    shadow_SN = member_KN[targets:]
    return np.stack(
        [
            sum(lira(phi_KN[t], phi_KN[targets:], shadow_SN) for phi_KN in phi_RKN)
            for t in range(targets)
        ]
    )
