"""Pure local differential privacy: each user reports one value, once, through a frequency oracle.

    server  asks a group of users, drawn independently of their items, about public candidates
    user    answers once in the whole run, through an ε-LDP oracle that the question alone chooses
    party   (a client: one user's device, or a site of many) adds up what the reports support

Claim: everything that the users send in a whole run is ε-DP for one user's item, δ = 0, replacing
one item by any other, candidates or not. Groups do not depend on items. The server may choose
candidates by what others have reported: whatever the question is, the chosen oracle's law changes
by a factor of e^ε at most, and a user whose item is no candidate reports like all others, for what
is sent and whether anything is must tell no more. A user's report is drawn once (an answer is kept,
see `fedsim.client.answers`), and all that follows is post-processing. ∎

Which users a round asks is public, so the ledger has one line a round. A round that is done again
with other coins (a deployed run that was resumed) makes the same users report twice, and counts 2ε.

The numbers of users of the clients are taken as public: replacing an item leaves them as they are.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Setting, Statement
from fedsim.query import QueryStrategy
from privacy.accounted import Accounted, is_fresh
from privacy.events import Event, PureDP
from privacy.frequency_oracles import Coins, Oracle, OracleName, choose
from privacy.frequency_oracles.coins import keyed, system
from privacy.frequency_oracles.truth import Truth
from privacy.normal import KEYED_STATEMENT

SYSTEM_STATEMENT = "coins from the operating system's generator"


@dataclass(kw_only=True)
class LocalReporting(QueryStrategy, abc.ABC):
    """A strategy each of whose users reports at most once in a run, through `mechanism.oracle`.

    Attributes:
        reporter: How users report: as they are, until a mechanism is bound.
    """

    reports_once: ClassVar[bool] = True
    """Whether that is so; a kind of it that asks users again says no, and is not protected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reporter = Reporter()


class Reporter:
    """How users report; this one tells the truth."""

    def oracle(self, candidates: np.ndarray) -> Oracle:
        """Return the randomiser for a question."""
        return Truth(1.0, candidates)

    def coins(self, server_round: int, client: int, purpose: str) -> Coins:
        """Return what a client's users toss."""
        return keyed(0, server_round, client, purpose)


class Randomised(Reporter):
    """Users report through a frequency oracle.

    Args:
        epsilon: ε.
        oracle: Which; `auto` takes that of least variance for each question.
        seed: Of keyed coins; None for the operating system's.
    """

    def __init__(self, epsilon: float, oracle: OracleName, seed: int | None) -> None:
        self.epsilon, self.name, self.seed = epsilon, oracle, seed

    def oracle(self, candidates: np.ndarray) -> Oracle:
        """See `Reporter.oracle`."""
        return choose(self.name, self.epsilon, candidates)

    def coins(self, server_round: int, client: int, purpose: str) -> Coins:
        """See `Reporter.coins`."""
        if self.seed is None:
            return system()
        return keyed(self.seed, server_round, client, f"report/{purpose}")


@dataclass(frozen=True, kw_only=True)
class LocalReports(PrivacyPart):
    """A frequency oracle for the reports of a strategy whose users report once.

    Attributes:
        epsilon: ε.
        oracle: `krr`, `oue`, `sue`, `olh`, `hadamard`, `subset`; `auto`: for each question that of
            least variance; `adaptive`: the better of `krr` and `oue`, which is quicker.
        noise_source: As in `privacy=local_dp`.
    """

    protects_answers = True

    epsilon: Annotated[float, Range(gt=0, lt=700)] = 4.0
    oracle: OracleName = "auto"
    noise_source: Literal["auto", "keyed", "system"] = "auto"

    def bind(self, setting: Setting) -> LocalReportsProtection:
        """See `PrivacyPart.bind`."""
        strategy = setting.strategy
        if not isinstance(strategy, LocalReporting) or not strategy.reports_once:
            raise ConfigError(
                f"strategy: {type(strategy).__name__} does not ask for one report of each user, "
                "which privacy=local_reports randomises; use strategy=tap or another that counts "
                "items, or another mechanism"
            )
        return LocalReportsProtection(self, strategy, setting)


class LocalReportsProtection(Accounted):
    """One run of `LocalReports`."""

    def __init__(self, part: LocalReports, strategy: LocalReporting, setting: Setting) -> None:
        self.fresh = is_fresh(part.noise_source, deployed=setting.deployed)
        strategy.reporter = Randomised(
            part.epsilon, part.oracle, None if self.fresh else setting.seed
        )
        of = {
            "auto": "the oracle of least variance",
            "adaptive": "k-RR or OUE, whichever varies less",
        }.get(part.oracle, part.oracle)
        super().__init__(
            claim=Statement(
                mechanism=f"one randomised report of each user ({of}, epsilon {part.epsilon:g})",
                delta=0.0,
                unit="user",
                relation="replace_one",
                trust="none but each user's own device",
                noise=SYSTEM_STATEMENT if self.fresh else KEYED_STATEMENT,
                notes=(
                    "A user is one item",
                    "Taken as public: how many users each client has, and in which round each user "
                    "reports",
                    "Scores compare with the exact counts, as only a simulation can, and are not "
                    "covered",
                ),
            ),
            sampling="each user reports once, in a group drawn independently of all items",
            events=[Event(mechanism=PureDP(epsilon=part.epsilon))],
            setting=setting,
            planned=1,
            budget=None,
            per_client=False,
        )
        self._rounds_N = np.zeros(setting.rounds + 1, np.int64)  # how often each group has reported

    @property
    def replays(self) -> bool:
        return not self.fresh

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: the reports of one group of users."""
        if server_round == 0 or not len(clients):
            return ()
        events = [event.to_json() for event in self._events]
        return ({"events": events, "group": server_round},)

    @staticmethod
    def _hit(line: Line) -> np.ndarray:
        return np.array([line["group"]], np.int64)
