"""The noise of DIFF2, and what it allows to be claimed (strategy=diff2; arXiv:2302.03884).

Every round releases Σ_p S_p + noise, where S_p is client p's sum of vectors clipped to c: gradients
(c = C1) in a restart, gradient differences (c = C2 ‖x_r − x_{r−1}‖) in all other rounds.

    restart:     noise = z1 c · N(0, I)         z1 = N σ1 of the paper
    difference:  noise = z2 c · N(0, I)         z2 = N σ2

Claim: the run is (ε, δ)-DP for one record. Sensitivity: c is a function of x_r and x_{r−1}, which
are outputs already and so public. A record adds one vector of norm ≤ c, times its client's
weight ≤ 1, to one of the sums; nothing else depends on it.
    replace_one: n_p stay as they are, and with them weights and N: the sum moves by ≤ 2c.
    add_remove:  N must be a public number (`examples`), and all weights 1: the sum moves by ≤ c.
What a round costs therefore does not depend on c, and the rounds compose adaptively. Every round is
charged: restarts as what they are, planned (⌈R/T⌉ of them) or forced by a change of membership.

calibration:  tight       z1 = s √(A/φ), z2 = s √(B/(1−φ)) for A restarts and B differences, which
                          cost together what one release with noise s costs; s by the exact profile
              published   z1² = 4u a R/(T ε), z2² = 4u/(u−1) a R/ε, a = 1 + ⌈2 ln(1/δ)/ε⌉, u = 1.25
                          (u → 1 for z1 where T = 1); its own proof counts R/T restarts, not ⌈R/T⌉
trust:        central      the server adds the noise
              distributed  each client adds its share, N(0, (z c)²/m): of the sum of ≥ m shares the
                           noise has at least the claimed size. With fewer nothing is opened
              local        each client adds all of it to what it sends, which protects its records
                           from everybody; the sum of P clients has √P times the noise

Differs from the paper: `tight`. It needs 0.8 of the published noise or less.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.runtime import ClientRuntime
from fedsim.errors import BudgetError, ConfigError
from fedsim.participation.sampling import Unsampled
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Setting, Statement
from fedsim.protection.statement import Relation
from fedsim.records import Params, Scalar
from fedsim.strategy import FedsimStrategy
from privacy.accountant import calibrate, epsilon
from privacy.accounted import Accounted, is_fresh
from privacy.events import Event, Gaussian
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, NoiseSource, keyed, system

log = logging.getLogger(__name__)

CLIP_NORM, CLIPPED = "clip-norm", "clipped-fraction"
"""What the clients of a round are told; the metric that says how many vectors were longer."""

U = 1.25
"""u of the published calibration: 1/u of the budget is for restarts."""

STABLE = 0.5
"""The rule η C2 σ2 √(dT) ≤ 0.5: what runs that did not diverge have kept to."""


class ClippedSums(FedsimStrategy, abc.ABC):
    """A strategy whose clients send sums of vectors clipped to a public norm.

    The tensors that are trained hold the sum, in place of the client's model.

    Attributes:
        restarting: Whether the round that was configured last is a restart.
        mechanism: What makes it private; None for no privacy.
    """

    restart: int
    clip_gradients: float
    clip_differences: float
    server_lr: float
    min_examples: int | None
    restarting: bool = True
    mechanism: Diff2Protection | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many restarts and differences a run has, and the noise of each.

    Attributes:
        restarts, differences: A = ⌈R/T⌉ and B = R − A.
        restart_noise, difference_noise: z1 and z2; the latter 0 where B = 0.
    """

    restarts: int
    differences: int
    restart_noise: float
    difference_noise: float

    def events(self) -> list[Event]:
        """Return what the whole run releases."""
        pairs = ((self.restart_noise, self.restarts), (self.difference_noise, self.differences))
        return [
            Event(mechanism=Gaussian(noise_multiplier=z), count=count)
            for z, count in pairs
            if count
        ]


def tight(rounds: int, restart: int, *, noise: float, split: float) -> Schedule:
    """Return the schedule that costs what one release with noise multiplier `noise` costs."""
    restarts = math.ceil(rounds / restart)
    differences = rounds - restarts
    split = split if differences else 1.0
    return Schedule(
        restarts=restarts,
        differences=differences,
        restart_noise=noise * math.sqrt(restarts / split),
        difference_noise=noise * math.sqrt(differences / (1 - split)) if differences else 0.0,
    )


def published(rounds: int, restart: int, *, epsilon: float, delta: float) -> Schedule:
    """Return the paper's noise, for the restarts that there are in truth."""
    order = _order(epsilon, delta)
    restarts = math.ceil(rounds / restart)
    u = U if restart > 1 else 1.0
    return Schedule(
        restarts=restarts,
        differences=rounds - restarts,
        restart_noise=math.sqrt(4 * u * order * rounds / (restart * epsilon)),
        difference_noise=math.sqrt(4 * U / (U - 1) * order * rounds / epsilon)
        if rounds > restarts
        else 0.0,
    )


def published_epsilon(rounds: int, restart: int, *, epsilon: float, delta: float) -> float:
    """Return what the paper's own analysis makes of `published`, with ⌈R/T⌉ restarts counted.

    Renyi DP of the one order a, converted by ln(1/δ)/(a − 1): at most `epsilon` where T divides R.

    Example:
        >>> round(published_epsilon(500, 60, epsilon=3.0, delta=1e-5), 2)
        3.03
    """
    plan, order = published(rounds, restart, epsilon=epsilon, delta=delta), _order(epsilon, delta)
    cost = plan.restarts * 2 * order / plan.restart_noise**2
    if plan.differences:
        cost += plan.differences * 2 * order / plan.difference_noise**2
    return cost + math.log(1 / delta) / (order - 1)


def _order(epsilon: float, delta: float) -> int:
    return 1 + math.ceil(2 * math.log(1 / delta) / epsilon)


@dataclass(frozen=True, kw_only=True)
class Diff2DP(PrivacyPart):
    """Gaussian noise on DIFF2's sums.

    `noise_multiplier` or `epsilon` must be set; with both, the run ends before the round that would
    cross `epsilon`.

    Attributes:
        epsilon: For the whole run; noise is solved for it where `noise_multiplier` is null.
        delta: Of (ε, δ); below 1 over the number of records.
        noise_multiplier: s, that of one release which costs what the whole run does.
        relation: Neighbouring data sets: one record replaced, or one more or less.
        trust, calibration: See this file's header.
        split: φ, the share of the budget for restarts.
        examples: With `add_remove`: N, how many records all clients hold, as everybody knows.
        min_survivors: With `distributed`: m; null for all clients.
        noise_source: `keyed` (repeatable), `system` (the operating system's generator), or `auto`:
            keyed in simulation, system on real devices.
        clipped_fraction: Whether clients report how many vectors were clipped: no noise hides it,
            and the statement says so.
    """

    hides_sizes = True

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    relation: Relation = "replace_one"
    trust: Literal["central", "distributed", "local"] = "central"
    calibration: Literal["tight", "published"] = "tight"
    split: Annotated[float, Range(gt=0, lt=1)] = 0.8
    examples: Annotated[int, Range(ge=1)] | None = None
    min_survivors: Annotated[int, Range(ge=1)] | None = None
    noise_source: Literal["auto", "keyed", "system"] = "auto"
    clipped_fraction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is None and self.noise_multiplier is None:
            raise ConfigError(
                "epsilon: null, and noise_multiplier is null too; set one of them, e.g. "
                "privacy.epsilon=3"
            )
        if self.calibration == "published" and (
            self.epsilon is None
            or self.noise_multiplier is not None
            or self.relation != "replace_one"
        ):
            raise ConfigError(
                "calibration: published noise is a formula of epsilon, for replace_one; set "
                "privacy.epsilon, and leave privacy.noise_multiplier and privacy.relation out"
            )
        if self.relation == "add_remove" and self.examples is None:
            raise ConfigError(
                "examples: null, but with relation=add_remove the true number of records is "
                "private; set a public one, e.g. privacy.examples=10000, or relation=replace_one"
            )

    def bind(self, setting: Setting) -> Diff2Protection:
        """See `PrivacyPart.bind`."""
        strategy, sampling = setting.strategy, setting.schedule.sampling()
        if not isinstance(strategy, ClippedSums):
            raise ConfigError(
                f"strategy: {type(strategy).__name__} does not send sums of clipped vectors, which "
                "privacy=diff2 adds noise to; use strategy=diff2 or dp_gd, or another mechanism, "
                "e.g. privacy=dp_sgd"
            )
        if not isinstance(sampling, Unsampled):
            raise ConfigError(
                f"participation: {sampling}, but the recursion of DIFF2 takes all clients in every "
                "round; use participation=full"
            )
        if self.relation == "add_remove" and strategy.min_examples is not None:
            raise ConfigError(
                "relation: add_remove, but with strategy.min_examples the weight of a record "
                "depends on how many its client holds; use strategy.min_examples=null, or "
                "relation=replace_one"
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
        return Diff2Protection(self, strategy, setting, self._schedule(setting, strategy.restart))

    def _schedule(self, setting: Setting, restart: int) -> Schedule:
        rounds = setting.rounds
        if self.calibration == "published" and self.epsilon is not None:
            return published(rounds, restart, epsilon=self.epsilon, delta=self.delta)
        noise = self.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda s: tight(rounds, restart, noise=s, split=self.split).events(),
                epsilon=self.epsilon or math.inf,
                delta=self.delta,
                relation=self.relation,
            )
        return tight(rounds, restart, noise=noise, split=self.split)


class Diff2Protection(Accounted):
    """One run of `Diff2DP`."""

    public_examples = 1.0

    def __init__(
        self, part: Diff2DP, strategy: ClippedSums, setting: Setting, schedule: Schedule
    ) -> None:
        self.part, self.strategy, self.schedule = part, strategy, schedule
        self.seed, self.num_clients = setting.seed, setting.num_clients
        self.fresh = is_fresh(part.noise_source, deployed=setting.deployed)
        self.shares = part.min_survivors or setting.num_clients
        self.sizes_N = np.zeros(setting.num_clients)
        self._counted: dict[Event, int] = {}
        strategy.mechanism = self
        super().__init__(
            claim=Statement(
                mechanism=self._words(),
                delta=part.delta,
                unit="example",
                relation=part.relation,
                trust=self._trust(),
                noise=SYSTEM_STATEMENT if self.fresh else KEYED_STATEMENT,
                notes=self._notes(setting.rounds),
            ),
            sampling="no sampling",
            events=schedule.events(),
            setting=setting,
            planned=1,
            budget=part.epsilon,
            per_client=False,
            population=part.examples or len(setting.dataset.train_y),
        )

    def _words(self) -> str:
        plan, sensitivity = self.schedule, 2.0 if self.part.relation == "replace_one" else 1.0

        def cost(noise: float) -> str:
            return f"rho {sensitivity**2 / (2 * noise**2):.3g}" if noise else "no noise"

        words = (
            f"DIFF2: clipping to C1 = {self.strategy.clip_gradients:g} and noise on the sum of "
            f"gradients in {plan.restarts} restarts (N sigma1 = {plan.restart_noise:.4g}, "
            f"{cost(plan.restart_noise)} each)"
        )
        if plan.differences:
            words += (
                f", to C2 = {self.strategy.clip_differences:g} times the step and on the sum of "
                f"gradient differences in {plan.differences} rounds (N sigma2 = "
                f"{plan.difference_noise:.4g}, {cost(plan.difference_noise)} each)"
            )
            if self.part.calibration == "tight":
                words += f", {self.part.split:.0%} of the budget for restarts"
        return f"{words}, {self.part.calibration} calibration"

    def _trust(self) -> str:
        if self.part.trust == "central":
            return "the server, which sees each client's sum of clipped vectors and adds the noise"
        if self.part.trust == "local":
            return "none but each client itself"
        return (
            f"that at least {self.shares} clients of a round are honest and keep their shares of "
            "the noise to themselves, and secure aggregation of their sums, which is simulated here"
        )

    def _notes(self, rounds: int) -> tuple[str, ...]:
        part = self.part
        notes = ["Scores of clients on their own held-out samples are not covered"]
        if part.clipped_fraction:
            notes.append("The reported fractions of clipped vectors are not covered")
        if part.calibration == "published" and part.epsilon is not None:
            own = published_epsilon(
                rounds, self.strategy.restart, epsilon=part.epsilon, delta=part.delta
            )
            if own > part.epsilon * (1 + 1e-9):
                notes.append(
                    f"The published analysis counts R/T restarts; with the {self.schedule.restarts}"
                    f" that there are, it would claim {own:.4g} and not {part.epsilon:g}"
                )
        return tuple(notes)

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`; N, and the rule of stability."""
        self._trainable = runtime.trainable
        if self.part.examples is not None:
            self.sizes_N = np.full(self.num_clients, self.part.examples / self.num_clients)
        else:
            self.sizes_N = np.array(
                [len(runtime.samples(k)) for k in range(self.num_clients)], np.float64
            )
        strategy, params = self.strategy, runtime.initial_params()
        total = (strategy.min_examples or 0) * self.num_clients or float(self.sizes_N.sum())
        size = sum(params[name].numel() for name in runtime.trainable)
        sigmas = [z / max(total, 1) for z in (self.schedule.restart_noise,
                                              self.schedule.difference_noise)]  # fmt: skip
        log.info("DIFF2: N = %g, sigma1 = %.4g, sigma2 = %.4g", total, *sigmas)
        step = strategy.server_lr * strategy.clip_differences * sigmas[1] * self.excess
        reach = step * math.sqrt(size * strategy.restart)
        if reach > STABLE:
            log.warning(
                "DIFF2: lr C2 sigma2 sqrt(d T) = %.2g is above %g, and the noise of the recursion "
                "may grow without bound; lower strategy.server_lr, clip_differences or restart, or "
                "raise privacy.epsilon",
                reach,
                STABLE,
            )

    @property
    def excess(self) -> float:
        """How many times the noise of central trust the sum has, where all clients reply."""
        count = self.num_clients
        return {"central": 1.0, "distributed": math.sqrt(count / self.shares)}.get(
            self.part.trust, math.sqrt(count)
        )

    # --- noise -----------------------------------------------------------------------------------

    @property
    def min_clients(self) -> int:
        """The fewest clients whose sum may be opened."""
        return self.shares if self.part.trust == "distributed" else 1

    @property
    def replays(self) -> bool:
        return not self.fresh

    @property
    def public_metrics(self) -> Collection[str]:
        return (CLIPPED,) if self.part.clipped_fraction else ()

    def noise_of(self, restarting: bool) -> float:
        """Return z of a round."""
        return self.schedule.restart_noise if restarting else self.schedule.difference_noise

    def add_noise_(self, sums: Params, server_round: int, clip_norm: float) -> None:
        """Add the server's noise, if it is trusted, to the sum of all clients, float64."""
        if self.part.trust == "central":
            std = self.noise_of(self.strategy.restarting) * clip_norm
            self._add_(sums, self._source(server_round, seeds.SERVER, "diff2"), std)

    @property
    def seals(self) -> bool:
        return self.part.trust != "central"

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        """See `Protection.seal_`: each client's own noise on its sum."""
        std = self.noise_of(bool(told["restart"])) * float(told[CLIP_NORM])
        if self.part.trust == "distributed":
            std /= math.sqrt(self.shares)
        for row, client in enumerate(clients.tolist()):
            rows = {name: weights[name][row] for name in self._trainable}
            self._add_(rows, self._source(server_round, client, "diff2-share"), std)
        return {}

    def _source(self, server_round: int, client: int, purpose: str) -> NoiseSource:
        return system() if self.fresh else keyed(self.seed, server_round, client, purpose)

    @staticmethod
    def _add_(sums: Mapping[str, Tensor], source: NoiseSource, std: float) -> None:
        flat_P = source.normal(sum(t.numel() for t in sums.values()), dtype=torch.float64)
        parts = torch.split(flat_P, [t.numel() for t in sums.values()])
        for tensor, noise in zip(sums.values(), parts, strict=True):
            tensor.add_(noise.view(tensor.shape).to(tensor.device, tensor.dtype), alpha=std)

    # --- what is claimed -------------------------------------------------------------------------

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: a restart, or a difference."""
        if server_round == 0 or not len(clients):
            return ()
        noise = Gaussian(noise_multiplier=self.noise_of(self.strategy.restarting))
        return ({"events": [Event(mechanism=noise).to_json()]},)

    def afford(self, lines: Sequence[Line]) -> None:
        """See `Protection.afford`."""
        if self._budget is None or not lines:
            return
        counts = dict(self._counted)
        for line in lines:
            _count(counts, line)
        after, limit = self._cost(counts), self._budget * (1 + 1e-9)
        if after > limit:
            raise BudgetError(
                f"privacy.epsilon={self._budget:g}: round {lines[0]['round']} would bring epsilon "
                f"to {after:.4g}, over the budget; it is {self._cost(self._counted):.4g} now "
                f"(delta {self.part.delta:g}, per example, {self.part.relation}). The model so far "
                "is kept. To go on, start a run with more noise or a larger privacy.epsilon"
            )

    def record(self, line: Line) -> None:
        """See `Protection.record`."""
        _count(self._counted, line)

    def spent(self) -> float:
        """See `Protection.spent`."""
        return self._cost(self._counted)

    def statement(self) -> Statement:
        """See `Protection.statement`."""
        return self._claimed(self._counted)

    def _claimed(self, counts: Mapping[Event, int]) -> Statement:
        if self._smoke:
            return replace(self._claim, accountant="none")
        events = [event.times(count) for event, count in counts.items()]
        spent = epsilon(events, delta=self.part.delta, relation=self.part.relation)
        return replace(self._claim, epsilon=spent.epsilon, accountant=spent.accountant)

    def _cost(self, counts: Mapping[Event, int]) -> float:
        events = [event.times(count) for event, count in counts.items()]
        return epsilon(events, delta=self.part.delta, relation=self.part.relation).epsilon


def _count(counts: dict[Event, int], line: Line) -> None:
    for data in line["events"]:
        event = Event.from_json(data)
        counts[event] = counts.get(event, 0) + 1
