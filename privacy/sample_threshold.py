"""Central DP by sampling and thresholding: votes of a random few, shown where there are enough.

    in each of L rounds, every user votes with probability r, anew, for at most one candidate
    the server shows the candidates with θ votes or more, and their votes; of others, nothing

No noise is added: the sampling is the noise. This is what TrieHH does (Zhu, Kairouz, McMahan, Sun &
Li, AISTATS 2020, arXiv:1902.08534), with a fixed number of voters; a coin of each user's own is the
form of Bharadwaj & Cormode (2021, arXiv:2112.05693), and needs nobody to draw the sample.

Claim: L rounds are (ε, δ)-DP for adding or removing one user, with e = ε/L for each.
Adding a user changes the number c of users behind one candidate from c − 1 to c, Y ~ Bin(c, r)
shown if Y >= θ. P_{c−1}(y) <= P_c(y)/(1−r) for every y and for "not shown", and 1/(1−r) <= e^e as
r <= 1 − e^−e. The other way, P_c(y)/P_{c−1}(y) = (1−r)c/(c−y) for y < c, and "not shown" is less
likely with c: what lies above e^e is

    δ_1 = max_c Σ_{y >= θ} max(0, P_c(y) − e^e P_{c−1}(y))

computed here exactly, for all c up to a bound past which Chernoff's inequality takes over. Rounds
compose adaptively: (L e, L δ_1). ∎  θ is the least that is at least the published one, has
r = (e^e − 1)/(θ e^e), and L δ_1 <= δ.

Published: θ minimal with ((θ−3)/(θ−2)) θ! >= 1/δ and θ >= e^e − 1, δ for all rounds together.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from scipy.stats import binom

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Protection, Setting, Statement
from fedsim.query import QueryStrategy
from privacy.accounted import SMOKE, is_fresh
from privacy.frequency_oracles.coins import Coins, keyed, system
from privacy.normal import KEYED_STATEMENT


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """How a round is voted.

    Attributes:
        rate: r.
        threshold: θ.
        seed: Of keyed coins; None for the operating system's.
    """

    rate: float = 1.0
    threshold: int = 1
    seed: int | None = 0

    def coins(self, server_round: int, client: int) -> Coins:
        """Return what a client's users toss."""
        return system() if self.seed is None else keyed(self.seed, server_round, client, "vote")


@dataclass(kw_only=True)
class Voting(QueryStrategy, abc.ABC):
    """A strategy whose users vote, each round anew, for one candidate at most.

    Attributes:
        ballot: How; everybody votes and all is shown, until a mechanism is bound.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ballot = Ballot()


def excess(rate: float, threshold: int, epsilon: float) -> float:
    """Return δ_1: how far one round is from being epsilon-DP."""
    limit = 1 - (1 - rate) * math.exp(-epsilon)  # y/c above this has a ratio above e^epsilon
    worst = 0.0
    for c in range(threshold, 200 * threshold):
        first = max(threshold, math.floor(limit * c) + 1)
        if first > c:
            continue
        # The sum over y >= first is a difference of tails.
        above = binom.sf(first - 1, c, rate) - math.exp(epsilon) * binom.sf(first - 1, c - 1, rate)
        worst = max(worst, float(above))
        # Chernoff: P[Y >= limit c] <= exp(−c KL(limit, rate)), which falls with c.
        if math.exp(-c * _divergence(limit, rate)) < worst:
            break
    return worst


def _divergence(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else math.inf


def ballot(epsilon: float, delta: float, rounds: int, seed: int | None) -> Ballot:
    """Return the voting that is (epsilon, delta)-DP over so many rounds."""
    each = epsilon / rounds
    threshold = 4
    while (
        (threshold - 3) / (threshold - 2) * math.factorial(threshold) < 1 / delta
        or threshold < math.exp(each) - 1
        or rounds * excess(-math.expm1(-each) / threshold, threshold, each) > delta
    ):
        threshold += 1
    return Ballot(rate=-math.expm1(-each) / threshold, threshold=threshold, seed=seed)


@dataclass(frozen=True, kw_only=True)
class SampleThreshold(PrivacyPart):
    """Sampling and thresholding for the votes of a strategy such as TrieHH.

    Attributes:
        epsilon: Of all rounds.
        delta: Of (ε, δ); below 1 over the number of users.
        noise_source: As in `privacy=local_dp`; here, of who votes.
    """

    protects_answers = True

    epsilon: Annotated[float, Range(gt=0, lt=100)] = 4.0
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-6
    noise_source: Literal["auto", "keyed", "system"] = "auto"

    def bind(self, setting: Setting) -> SampleThresholdProtection:
        """See `PrivacyPart.bind`."""
        strategy = setting.strategy
        if not isinstance(strategy, Voting):
            raise ConfigError(
                f"strategy: {type(strategy).__name__} does not let users vote anew in each round, "
                "which privacy=sample_threshold protects; use strategy=triehh, or another "
                "mechanism, e.g. privacy=local_reports"
            )
        fresh = is_fresh(self.noise_source, deployed=setting.deployed)
        strategy.ballot = ballot(
            self.epsilon, self.delta, strategy.rounds(), None if fresh else setting.seed
        )
        return SampleThresholdProtection(self, strategy, setting, fresh)


class SampleThresholdProtection(Protection):
    """One run of `SampleThreshold`."""

    def __init__(
        self, part: SampleThreshold, strategy: Voting, setting: Setting, fresh: bool
    ) -> None:
        self.part, self.fresh, self.smoke = part, fresh, setting.smoke
        self.rounds, self.done = strategy.rounds(), 0
        how = strategy.ballot
        self.claim = Statement(
            mechanism=f"votes of users sampled with probability {how.rate:.4g}, shown where there "
            f"are {how.threshold} or more",
            delta=part.delta,
            unit="user",
            relation="add_remove",
            sampling="each user votes by a coin of its own, anew in every round",
            accountant="exact divergence of sampled and thresholded counts, basic composition",
            trust="the server, which sees each client's votes before the threshold",
            noise="coins from the operating system's generator" if fresh else KEYED_STATEMENT,
            notes=(
                "A user is one item",
                "Scores compare with the exact counts, as only a simulation can, and are not "
                "covered",
                *([SMOKE] if setting.smoke else []),
            ),
        )

    @property
    def replays(self) -> bool:
        return not self.fresh

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: one round of votes."""
        if server_round == 0 or not len(clients):
            return ()
        each = {"epsilon": self.part.epsilon / self.rounds, "delta": self.part.delta / self.rounds}
        return ({"votes": each},)

    def record(self, line: Line) -> None:
        """See `Protection.record`."""
        self.done += 1

    def spent(self) -> float:
        """See `Protection.spent`."""
        return self.part.epsilon * self.done / self.rounds

    def words(self, epsilon: float) -> str:
        """See `Protection.words`."""
        return self._stated(self.done).at(epsilon, "≤ ")

    def statement(self) -> Statement:
        """See `Protection.statement`."""
        return self._stated(self.done)

    def planned(self) -> Statement:
        """See `Protection.planned`."""
        return self._stated(self.rounds)

    def _stated(self, rounds: int) -> Statement:
        if self.smoke:
            return replace(self.claim, accountant="none")
        times = rounds / self.rounds
        # A run that was done again in part has spent more of both than it planned.
        delta = self.part.delta * max(times, 1.0)
        return replace(self.claim, epsilon=self.part.epsilon * times, delta=delta)
