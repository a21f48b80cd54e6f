"""`audit=canary_clients`: an ESTIMATE of user-level ε from canary clients, in one run.

Andrew et al. 2023 (arXiv:2302.03098); the estimator, and when it fails, are in
`privacy.audit.canary_clients`. k clients of the federation send random directions, far too long,
and are clipped, sampled, noised and aggregated like any other. The adversary sees the final model:

    g_j = cos(c_j, θ_T − θ_0)        of the canaries that took part; μ = mean(g) √d

Nothing is refuted by it: it is no bound, and comes with no confidence. Directions that no client
sent are drawn beside, to show that these are centred at zero.

Shapes: K canaries, P parameters (d).

Differs from the paper: the equal-variance form.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.auditing import Audit, AuditPart, Verdict
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, Protection, Statement
from fedsim.records import Params, Scalar
from fedsim.simulation import Simulation
from privacy.audit.canary_clients import Estimate, cosines, estimate, unit_vector
from privacy.audit.delegate import Delegate
from privacy.audit.planted import MANY, TOO_LONG
from privacy.audit.tradeoff import gdp_mu
from privacy.events import Event, Gaussian

NAME = "audit=canary_clients"
ESTIMATE = "an ESTIMATE, not a bound"


@dataclass(frozen=True, kw_only=True)
class CanaryClients(AuditPart):
    """Canary clients.

    Attributes:
        canaries: k. Too many disturb what they are compared with, of which the audit warns.
        others: What all other clients send: `honest`, what they would; `silent`, nothing.
    """

    canaries: Annotated[int, Range(ge=2)] = 20
    others: Literal["silent", "honest"] = "honest"

    def plant(self, simulation: Simulation, inner: Protection) -> Audit:
        statement = inner.planned()
        if statement.unit != "user" or not statement.private:
            claim = f"per {statement.unit}" if statement.private else "nothing"
            raise ConfigError(
                f"{NAME}: the run claims {claim}; canary clients estimate a claim per user: "
                "use privacy=user_dp, or another audit (fedsim list audit)"
            )
        if type(inner).receive is Protection.receive:
            raise ConfigError(
                f"{NAME}: clients add noise themselves here, and whoever attacks one sees its "
                "update, not the sum; use audit=canaries"
            )
        population = simulation.partition.num_clients
        if self.canaries > population:
            raise ConfigError(
                f"audit.canaries: {self.canaries} clients, and there are {population}; set "
                f"partition.num_clients={self.canaries}, or fewer canaries"
            )
        seed = simulation.settings.seed
        rng = seeds.rng(seed, 0, seeds.SERVER, "audit-clients")
        client_K = np.sort(rng.choice(population, self.canaries, replace=False))
        shapes = {
            name: tensor.shape
            for name, tensor in simulation.model.named_parameters()
            if tensor.requires_grad
        }
        protection = PlantedDirections(inner, seed, client_K, shapes, self.others == "silent")
        return _Running(protection)


class PlantedDirections(Delegate):
    """The mechanism, with clients in it that send random directions.

    Args:
        inner: The mechanism.
        seed: Of the directions.
        client_K: Which clients they are; the k-th sends `unit_vector(seed, k, ...)`.
        shapes: Of the trainable tensors, in the model's order.
        silent: Whether all other clients send the model as they received it.
    """

    def __init__(
        self,
        inner: Protection,
        seed: int,
        client_K: np.ndarray,
        shapes: Mapping[str, torch.Size],
        silent: bool,
    ) -> None:
        super().__init__(inner)
        self.seed, self.client_K, self.shapes, self.silent = seed, client_K, shapes, silent
        self.size = sum(shape.numel() for shape in shapes.values())
        self.rounds_K = np.zeros(len(client_K), np.int64)
        """In how many rounds each took part."""

    @property
    def seals(self) -> bool:
        return True

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        canary_of = {int(client): k for k, client in enumerate(self.client_K)}
        num_examples = num_examples.copy()
        for row, client in enumerate(clients.tolist()):
            k = canary_of.get(client)
            if k is None and not self.silent:
                continue
            for name, tensor in weights.items():
                tensor[row] = start[name]
            if k is None:
                continue
            for name, part in self.direction(k).items():
                weights[name][row] += TOO_LONG * part.to(weights[name])
            num_examples[row] = MANY  # where clients are weighed, its weight is the cap
            self.rounds_K[k] += 1
        return self.inner.seal_(weights, start, clients, server_round, num_examples, told)

    def direction(self, canary: int) -> dict[str, Tensor]:
        """Return a canary's direction, name -> trainable tensor, float64."""
        vector_P = torch.from_numpy(unit_vector(self.seed, canary, self.size))
        parts = torch.split(vector_P, [shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def change(self, initial: Params, final: Params) -> np.ndarray:
        """Return how a model has changed, as directions lie, float64 `[P]`."""
        moved = [
            (final[name].double().cpu() - initial[name].double().cpu()) for name in self.shapes
        ]
        flat_P: np.ndarray = torch.cat([tensor.flatten() for tensor in moved]).numpy()
        return flat_P


class _Running(Audit):
    protection: PlantedDirections

    def __init__(self, protection: PlantedDirections) -> None:
        self.protection = protection

    def planted(self) -> dict[str, Any]:
        protection = self.protection
        return {
            "seed": protection.seed,
            "clients": protection.client_K.tolist(),
            "parameters": protection.size,
            "others": "silent" if protection.silent else "honest",
        }

    def conclude(self, initial: Params, final: Params, ledger: Sequence[Line]) -> Verdict:
        protection, statement = self.protection, self.protection.statement()
        count = len(protection.client_K)
        all_cosines = cosines(protection.seed, 2 * count, protection.change(initial, final))
        seen = protection.rounds_K > 0
        if seen.sum() < 2:
            raise ConfigError(
                f"audit.canaries: {int(seen.sum())} of {count} took part in a round, and at least "
                "2 are needed; set more of them, more rounds, or larger cohorts"
            )
        rounds, noise = noise_of(statement, ledger, float(protection.rounds_K[seen].mean()))
        found = estimate(
            all_cosines[:count][seen],
            protection.size,
            delta=statement.delta,
            rounds=rounds,
            noise_multiplier=noise,
        )
        scaled = np.sqrt(protection.size) * all_cosines
        return Verdict(
            refuted=False,
            words=_words(found, statement, protection),
            values={
                "claim": statement.to_json(),
                "kind": ESTIMATE,
                "estimate": dataclasses.asdict(found),
                "clients": protection.client_K.tolist(),
                "rounds": protection.rounds_K.tolist(),
                "scaled_cosines": scaled[:count].tolist(),
                "scaled_cosines_of_directions_nobody_sent": scaled[count:].tolist(),
            },
            picture=_picture(found, statement, scaled[:count][seen], scaled[count:]),
        )


def noise_of(statement: Statement, lines: Sequence[Line], rounds: float) -> tuple[int, float]:
    """Return T and z, for the check of k T << z² d.

    The smallest z of the ledger's Gaussian events, in the rounds that a canary took part in on
    average; of other mechanisms, the one Gaussian release that costs as much as is claimed.
    """
    events = [Event.from_json(event) for line in lines for event in line.get("events", [])]
    gaussian = [e.mechanism.noise_multiplier for e in events if isinstance(e.mechanism, Gaussian)]
    if gaussian:
        return max(1, round(rounds)), min(gaussian)
    return 1, 1 / max(gdp_mu(statement.epsilon, statement.delta), 1e-9)


def _words(found: Estimate, statement: Statement, protection: PlantedDirections) -> tuple[str, ...]:
    others = "send nothing" if protection.silent else "train honestly"
    return (
        f"{ESTIMATE}: ε about {found.epsilon:.3f} at δ {found.delta:.1e}, of {found.canaries} "
        f"canary clients (two variances, which is biased up: {found.epsilon_two_variances:.3f})",
        "it comes with no confidence and refutes nothing; audit=canaries gives bounds",
        *(f"warning: {warning}" for warning in found.warnings),
        f"claimed: {statement}",
        f"adversary: sees the final model; knows the canaries' directions; all other clients "
        f"{others}",
    )


def _picture(
    found: Estimate, statement: Statement, seen_K: np.ndarray, unseen_K: np.ndarray
) -> bytes:
    """Return a PNG: the estimate beside the claim, and the cosines that it comes from."""
    from matplotlib.figure import Figure
    from scipy.stats import norm

    from fedsim.report.figures import BLUE, FULL, GREY, ORANGE, VERMILLION, style

    buffer = io.BytesIO()
    with style():
        figure = Figure(figsize=(FULL, 3.4), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        names = ["two variances\n(biased up)", "equal variances"]
        values = [found.epsilon_two_variances, found.epsilon]
        left.bar_label(left.barh(names, values, color=[ORANGE, BLUE], height=0.5), fmt="%.2f")
        if np.isfinite(statement.epsilon):
            left.axvline(statement.epsilon, color=VERMILLION, linestyle="--", label="claimed ε")
            left.legend(loc="upper left")
        left.set_ylim(-0.5, 2.1)
        left.set_xlim(0, 1.2 * max(1e-3, *values, min(statement.epsilon, 1e3)))
        left.set_xlabel(f"ε at δ = {found.delta:.0e}")
        left.set_title("Estimates, not bounds")
        ends = min(seen_K.min(), unseen_K.min(), -3), max(seen_K.max(), unseen_K.max(), 3)
        bins, grid = np.linspace(*ends, 15), np.linspace(*ends, 200)
        right.hist(unseen_K, bins, density=True, color=GREY, label="directions nobody sent")
        right.hist(seen_K, bins, density=True, color=BLUE, alpha=0.6, label="canaries")
        right.plot(grid, norm.pdf(grid), color="black", linestyle=":", label="N(0, 1)")
        right.plot(grid, norm.pdf(grid, found.mu), color=VERMILLION, label="N(μ, 1), fitted")
        right.set_xlabel("cosine with the model's change, × √d")
        right.set_ylabel("density")
        right.set_title("Canary clients")
        right.set_ylim(0, 1.6 * right.get_ylim()[1])
        right.legend(loc="upper left", ncols=2)
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
