"""The noise of DIFF2, and what it allows to be claimed (strategy=diff2; arXiv:2302.03884).

Every round of gradients releases Σ_p S_p + noise, where S_p is client p's sum of vectors clipped to
c: gradients (c = C1) in a restart, gradient differences (c = C2 ‖x_r − x_{r−1}‖) in all others. The
noise is z1 c · N(0, I) in a restart, z2 c · N(0, I) else. Local steps (strategy=bvr_l_sgd) release
D + z3 c · N(0, I) each, D the sum of differences over one batch of the client that takes them,
clipped to c = C3 times the length of its last step. `privacy.diff2_schedule` has z1, z2 and z3.

Claim: the run is (ε, δ)-DP for one record. Sensitivity: c is a function of models that are outputs
already, and so public. A record adds one vector of norm ≤ c, times its client's weight ≤ 1, to one
of the sums; nothing else depends on it.
    replace_one: n_p stay as they are, and with them weights, N and batches: the sum moves by ≤ 2c.
    add_remove:  N must be a public number (`examples`), and all weights 1: the sum moves by ≤ c.
                 Refused with local steps, whose batches n_p decides.
What a round costs therefore does not depend on c, and the rounds compose adaptively. Every round is
charged: restarts as what they are, planned (⌈R/T⌉ of them) or forced by a change of membership.
Local steps: who takes them, and on which batch, is drawn without the data, and batches are
disjoint. Two data sets that differ in one record give the same law to all steps on other batches,
given what was released before; only those on the record's own batch are charged to it, and the
claim is that of the record whose batch is visited most. No amplification by the draw is claimed.

trust:        central      the server adds the noise to sums of gradients
              distributed  each client adds its share, N(0, (z c)²/m): of the sum of ≥ m shares the
                           noise has at least the claimed size. With fewer nothing is opened
              local        each client adds all of it to what it sends, which protects its records
                           from everybody; the sum of P clients has √P times the noise
Under all three the client that takes local steps adds their noise itself, in full: nobody else sees
a step without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from fedsim.errors import ConfigError
from fedsim.participation.sampling import Unsampled
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting
from fedsim.protection.statement import Relation
from privacy.accountant import calibrate
from privacy.clipped_strategy import ClippedSums
from privacy.diff2_protection import Diff2Protection
from privacy.diff2_schedule import Releases, Schedule, published, tight


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
        trust: See this file's header.
        calibration: See `privacy.diff2_schedule`.
        split: φ, the share of restarts in what local steps leave of the budget.
        local_split: φ', the share of local steps, where there are any.
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
    local_split: Annotated[float, Range(gt=0, lt=1)] = 0.2
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
        planned = strategy.releases_in(
            setting.rounds, seed=setting.seed, num_clients=setting.num_clients
        )
        if planned.visits:
            self._check_local()
        least = self.min_survivors or setting.num_clients
        if least > setting.num_clients:
            raise ConfigError(
                f"min_survivors: {least}, but there are {setting.num_clients} clients; set at most "
                "that many"
            )
        schedule = self._schedule(planned, setting.rounds, strategy.restart)
        return Diff2Protection(self, strategy, setting, schedule)

    def _check_local(self) -> None:
        if self.calibration == "published":
            raise ConfigError(
                "calibration: the paper publishes no noise for the local steps of BVR-L-SGD that "
                "we know of; use privacy.calibration=tight"
            )
        if self.relation == "add_remove":
            raise ConfigError(
                "relation: add_remove, but how many records a client holds decides which of them "
                "share a batch of its local steps; use privacy.relation=replace_one"
            )

    def _schedule(self, planned: Releases, rounds: int, restart: int) -> Schedule:
        if self.calibration == "published" and self.epsilon is not None:
            return published(rounds, restart, epsilon=self.epsilon, delta=self.delta)

        def at(noise: float) -> Schedule:
            return tight(planned, noise=noise, split=self.split, local_split=self.local_split)

        if self.noise_multiplier is not None:
            return at(self.noise_multiplier)
        return at(
            calibrate(
                lambda s: at(s).events(),
                epsilon=self.epsilon or math.inf,
                delta=self.delta,
                relation=self.relation,
            )
        )
