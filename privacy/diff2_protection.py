"""One run under `privacy=diff2`: noise, ledger, and claim, whose proof is in privacy/diff2.py.

Local steps are charged by batch: the ledger's line of such a round names the client and the batches
that it takes, and what counts is the batch that was visited most often, of any client.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.runtime import ClientRuntime
from fedsim.errors import BudgetError
from fedsim.protection import Line, Setting, Statement
from fedsim.records import Params, Scalar
from privacy.accountant import epsilon
from privacy.accounted import Accounted, check_one_holder, is_fresh
from privacy.clipped_strategy import CLIP_NORM, CLIPPED, RESTART, ClippedSums
from privacy.diff2_schedule import Schedule, published_epsilon
from privacy.events import Event, Gaussian
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, NoiseSource, keyed, system

if TYPE_CHECKING:
    from privacy.diff2 import Diff2DP

log = logging.getLogger(__name__)

STABLE = 0.5
"""The rule η C2 σ2 √(dT) ≤ 0.5: what runs that did not diverge have kept to."""


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
        self._tally = Tally()
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

    def _words(self, examples: float = 0.0) -> str:
        """Return what protects, with σ1 and σ2 once N is known."""
        plan, strategy = self.schedule, self.strategy
        sensitivity = 2.0 if self.part.relation == "replace_one" else 1.0

        def noise(name: str, level: float) -> str:
            words = f"N {name} = {level:.4g}"
            if examples:
                words += f", {name} = {level / examples:.4g}"
            return f"({words}, {cost(level)} each)"

        def cost(level: float) -> str:
            return f"rho {sensitivity**2 / (2 * level**2):.3g}" if level else "no noise"

        words = (
            f"DIFF2: clipping to C1 = {strategy.clip_gradients:g} and noise on the sum of "
            f"gradients in {plan.restarts} restarts {noise('sigma1', plan.restart_noise)}"
        )
        if plan.differences:
            words += (
                f", to C2 = {strategy.clip_differences:g} times the step and on the sum of "
                f"gradient differences in {plan.differences} rounds "
                f"{noise('sigma2', plan.difference_noise)}"
            )
        if plan.visits:
            words += (
                f", to C3 = {strategy.clip_local:g} times the step and, by the client itself, on "
                f"the sum over a batch of b in local steps, of which a record meets at most "
                f"{plan.visits} (b sigma3 = {plan.local_noise:.4g}, {cost(plan.local_noise)} each)"
            )
        if self.part.calibration == "tight" and (plan.differences or plan.visits):
            left = 1 - (self.part.local_split if plan.visits else 0.0)
            split = self.part.split if plan.differences else 1.0
            words += f", {left * split:.0%} of the budget for restarts"
            words += f" and {1 - left:.0%} for local steps" if plan.visits else ""
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
        check_one_holder(runtime, "examples")
        self._trainable = runtime.trainable
        if self.part.examples is not None:
            self.sizes_N = np.full(self.num_clients, self.part.examples / self.num_clients)
        else:
            self.sizes_N = np.array(
                [len(runtime.samples(k)) for k in range(self.num_clients)], np.float64
            )
        strategy, plan, params = self.strategy, self.schedule, runtime.initial_params()
        total = (strategy.min_examples or 0) * self.num_clients or float(self.sizes_N.sum())
        total = max(total, 1.0)
        self._claim = replace(self._claim, mechanism=self._words(total))
        size = sum(params[name].numel() for name in runtime.trainable)
        step = strategy.server_lr * strategy.clip_differences * self.excess
        reach = step * plan.difference_noise / total * math.sqrt(size * strategy.restart)
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
            self.add_(sums, self._source(server_round, seeds.SERVER, "diff2"), std)

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
        if RESTART not in told:  # local steps, whose noise is in them
            return {}
        std = self.noise_of(bool(told[RESTART])) * float(told[CLIP_NORM])
        if self.part.trust == "distributed":
            std /= math.sqrt(self.shares)
        for row, client in enumerate(clients.tolist()):
            rows = {name: weights[name][row] for name in self._trainable}
            self.add_(rows, self._source(server_round, client, "diff2-share"), std)
        return {}

    def local_source(self, server_round: int, client: int) -> NoiseSource:
        """See `Mechanism.local_source`."""
        return self._source(server_round, client, "diff2-local")

    def _source(self, server_round: int, client: int, purpose: str) -> NoiseSource:
        return system() if self.fresh else keyed(self.seed, server_round, client, purpose)

    @staticmethod
    def add_(sums: Mapping[str, Tensor], source: NoiseSource, std: float) -> None:
        flat_P = source.normal(sum(t.numel() for t in sums.values()), dtype=torch.float64)
        parts = torch.split(flat_P, [t.numel() for t in sums.values()])
        for tensor, noise in zip(sums.values(), parts, strict=True):
            tensor.add_(noise.view(tensor.shape).to(tensor.device, tensor.dtype), alpha=std)

    # --- what is claimed -------------------------------------------------------------------------

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: a restart, a difference, or one client's local steps."""
        if server_round == 0 or not len(clients):
            return ()
        visit = self.strategy.visit
        if visit is None:
            noise = Gaussian(noise_multiplier=self.noise_of(self.strategy.restarting))
            return ({"events": [Event(mechanism=noise).to_json()]},)
        noise, batches = Gaussian(noise_multiplier=self.schedule.local_noise), list(visit.batches)
        event = Event(mechanism=noise, count=max(Counter(batches).values(), default=0))
        return ({"events": [event.to_json()], "clients": [visit.worker], "batches": batches},)

    def afford(self, lines: Sequence[Line]) -> None:
        """See `Protection.afford`."""
        if self._budget is None or not lines:
            return
        tally = copy.deepcopy(self._tally)
        for line in lines:
            tally.add(line)
        after, limit = self._cost(tally), self._budget * (1 + 1e-9)
        if after > limit:
            raise BudgetError(
                f"privacy.epsilon={self._budget:g}: round {lines[0]['round']} would bring epsilon "
                f"to {after:.4g}, over the budget; it is {self._cost(self._tally):.4g} now "
                f"(delta {self.part.delta:g}, per example, {self.part.relation}). The model so far "
                "is kept. To go on, start a run with more noise or a larger privacy.epsilon"
            )

    def record(self, line: Line) -> None:
        """See `Protection.record`."""
        self._tally.add(line)

    def spent(self) -> float:
        """See `Protection.spent`."""
        return self._cost(self._tally)

    def statement(self) -> Statement:
        """See `Protection.statement`."""
        if self._smoke:
            return replace(self._claim, accountant="none")
        spent = epsilon(self._tally.events(), delta=self.part.delta, relation=self.part.relation)
        return replace(self._claim, epsilon=spent.epsilon, accountant=spent.accountant)

    def _cost(self, tally: Tally) -> float:
        events = tally.events()
        return epsilon(events, delta=self.part.delta, relation=self.part.relation).epsilon


class Tally:
    """What has been released about the record about which most has."""

    def __init__(self) -> None:
        self._counted: Counter[Event] = Counter()
        self._visits: dict[Event, Counter[tuple[int, int]]] = {}

    def add(self, line: Line) -> None:
        """Count a line of the ledger."""
        events = [replace(Event.from_json(data), count=1) for data in line["events"]]
        if "batches" not in line:
            self._counted.update(events)
            return
        for event in events:
            (worker,) = line["clients"]
            visits = self._visits.setdefault(event, Counter())
            visits.update((worker, batch) for batch in line["batches"])

    def events(self) -> list[Event]:
        """Return the events that are to be composed."""
        most = {event: max(visits.values(), default=0) for event, visits in self._visits.items()}
        return [event.times(n) for event, n in (self._counted + Counter(most)).items()]
