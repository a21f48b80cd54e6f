"""`audit=canaries`: m Dirac canaries in one run, each in or out by a fair coin of its own.

Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), white-box; Mahloujifar et al. 2024
(arXiv:2410.22235). Canary j is one unit of privacy whose contribution is ± C e_j, with a coordinate
and a sign of its own, so that canaries do not disturb each other. It is given to the mechanism far
too long, and clipped, sampled and noised by it like any other:

    unit user     a client whose update is that, whenever the participation model selects it
    unit example  a sample with that gradient, of the client that takes part most often, whenever
                  the mechanism's own sampler draws it (engine=cohort)

The adversary knows everything but the coins and the noise. It sees all that the trust model lets
it: every client's update, or, where the server is trusted to aggregate, the model. A canary's score
is how far its coordinate moved its way in the whole run.

A claim is refuted if the right guesses reject the trade-off curve of the ledger's events. Under
`replace_one`, a canary that is out contributes the opposite instead of nothing.

Shapes: M canaries, P parameters.

Differs from the papers: signs, so that what other data do to a coordinate helps neither side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from fedsim import seeds
from fedsim.auditing import Audit, AuditPart, Verdict
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, Protection
from fedsim.records import Params
from fedsim.simulation import Simulation
from privacy.audit import one_run
from privacy.audit.claim import busiest, claim_of
from privacy.audit.findings import Findings
from privacy.audit.planted import Diracs, Planted, PlantedExamples, PlantedUsers


@dataclass(frozen=True, kw_only=True)
class Canaries(AuditPart):
    """Dirac canaries.

    Attributes:
        canaries: m.
        guesses: r, half of them "in", half "out"; null for a fifth of the canaries. Fixed before
            anything is seen; 2000 canaries with 400 guesses flag halved noise 40 times of 40 at
            ε = 4, and 500 with 100 about 16 times.
        confidence: That a true claim is not refuted.
        others: What all other data contribute: `silent`, nothing, as an adversary who knows them
            could subtract it; `honest`, what they would.
    """

    canaries: Annotated[int, Range(ge=10)] = 1000
    guesses: Annotated[int, Range(ge=2)] | None = None
    confidence: Annotated[float, Range(gt=0.5, lt=1)] = 0.99
    others: Literal["silent", "honest"] = "silent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guesses is not None and self.guesses > self.canaries:
            raise ConfigError(
                f"guesses: {self.guesses} of {self.canaries} canaries; expected at most "
                f"{self.canaries}, e.g. {self.canaries // 5}"
            )

    def plant(self, simulation: Simulation, inner: Protection) -> Audit:
        statement = inner.planned()
        if not statement.private:
            raise ConfigError(
                "audit=canaries: the run claims no privacy, so there is nothing to refute; choose "
                "a mechanism (fedsim list privacy)"
            )
        kinds = {"user": self._users, "example": self._examples}
        if statement.unit not in kinds:
            raise ConfigError(
                f"audit=canaries: the claim is per {statement.unit}; canaries are planted for "
                f"{' and '.join(kinds)} claims"
            )
        diracs = self._draw(simulation, replaced=statement.relation == "replace_one")
        return _Running(
            part=self,
            seed=simulation.settings.seed,
            protection=kinds[statement.unit](simulation, inner, diracs),
        )

    def _draw(self, simulation: Simulation, *, replaced: bool) -> Diracs:
        shapes = {
            name: tensor.shape
            for name, tensor in simulation.model.named_parameters()
            if tensor.requires_grad
        }
        size = sum(shape.numel() for shape in shapes.values())
        if self.canaries > size:
            raise ConfigError(
                f"audit.canaries: {self.canaries} of them need a parameter each, and the model has "
                f"{size}; set audit.canaries={size} or less, or take a larger model"
            )

        def rng(purpose: str) -> np.random.Generator:
            return seeds.rng(simulation.settings.seed, 0, seeds.SERVER, f"audit-{purpose}")

        return Diracs(
            shapes=shapes,
            coordinate_M=rng("coordinates").choice(size, self.canaries, replace=False),
            sign_M=rng("signs").choice([-1.0, 1.0], self.canaries),
            included_M=rng("coins").random(self.canaries) < 0.5,
            replaced=replaced,
        )

    def _users(self, simulation: Simulation, inner: Protection, diracs: Diracs) -> Planted:
        population = simulation.partition.num_clients
        if self.canaries > population:
            raise ConfigError(
                f"audit.canaries: {self.canaries} clients, and there are {population}; set "
                f"partition.num_clients={self.canaries}, or fewer canaries"
            )
        rng = seeds.rng(simulation.settings.seed, 0, seeds.SERVER, "audit-clients")
        client_M = np.sort(rng.choice(population, self.canaries, replace=False))
        return PlantedUsers(inner, diracs, client_M, silent=self.others == "silent")

    def _examples(self, simulation: Simulation, inner: Protection, diracs: Diracs) -> Planted:
        client = busiest(simulation)
        return PlantedExamples(inner, diracs, client, silent=self.others == "silent")


@dataclass
class _Running(Audit):
    part: Canaries
    seed: int
    protection: Planted

    def planted(self) -> dict[str, Any]:
        return {"seed": self.seed, "threat": self.protection.threat, **self.protection.to_json()}

    def conclude(self, initial: Params, final: Params, ledger: Sequence[Line]) -> Verdict:
        part, protection = self.part, self.protection
        statement = protection.statement()
        claim = claim_of(statement, ledger, protection.client)
        score_M, included_M = protection.scores(initial, final), protection.diracs.included_M
        r = part.guesses or part.canaries // 5
        found = one_run.audit(
            score_M,
            included_M,
            guesses=[r],
            delta=statement.delta,
            confidence=part.confidence,
        )
        refuted = one_run.refutes(claim.fpr, part.canaries, r, found.correct, p=1 - part.confidence)
        return Findings(
            claim=claim,
            found=found,
            refuted=refuted,
            score_M=score_M,
            included_M=included_M,
            threat=protection.threat,
        ).verdict()
