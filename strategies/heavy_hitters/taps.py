"""TAPS: TAP whose clients prune by what others have found (Zhang, Ye & Hu, SIGMOD 2025).

    Phase I   as TAP (`strategies.heavy_hitters.tap`)
    Phase II  one client after another, largest first. Client j is sent, for each level h > gs, the
              running scores S_h(v) = Σ_{i<j} N_i f̂_i(v) of the prefixes seen so far.  At level h:
        D       its candidates; at the last level, also the k items of largest S_g
        R       of D's known prefixes those of lowest score, at most γ|D|, leaving k or more of D
        β       of the level's group answer "is my prefix in R?" by binary randomised response
        prune   R if its debiased mass is below 2 standard errors (consensus), else nothing
        f̂       on what is left of D, by the rest of the group;  the t_h largest go on
    Phase III as TAP, every client's estimates of the running top k counted as well

gs + (number of clients) rounds. A user answers either about R or about the candidates, never both.

Differs from the paper: its body was not at hand. That knowledge for pruning is passed from client
to client in sequence, and used by consensus, is known; γ, β, the test and the vote are a
reconstruction.

Shapes: L local levels, W places for the prefixes of a level, padded with `NOTHING`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from fedsim.client.whole import Cohort, Worked
from fedsim.data.dataset import Dataset
from fedsim.parts import Range
from fedsim.query import QueryHalf
from fedsim.records import Params, Replies
from fedsim.strategy import Round, State
from strategies.heavy_hitters import tree
from strategies.heavy_hitters.search import (
    CANDIDATES,
    COUNTS,
    ITEMS,
    LEVEL,
    REPORTS,
    SENT,
    Descent,
    SearchHalf,
    upload,
)
from strategies.heavy_hitters.tap import TAP
from strategies.heavy_hitters.tree import NOTHING

SEEN, SCORES = "seen", "scores"
"""Prefixes `[L, W]`, and what they have: S_h in a question, N_j f̂_j in an answer."""

CONSENSUS = 2.0
"""R is pruned if its mass is below so many standard errors."""


class PruningDescent(Descent):
    """One client's Phase II."""

    strategy: TAPS

    def pruned(self, cohort: Cohort, row: int, first: int, prefixes: np.ndarray) -> Worked:
        """Go down from level `first` on, asking which prefixes to leave out."""
        strategy, client = self.strategy, int(cohort.clients[row])
        bits, reporter, k = strategy.bits_of_levels, strategy.reporter, strategy.k
        size = float(cohort.counts[row])
        known_LW, score_LW = (cohort.start[n].cpu().numpy() for n in (SEEN, SCORES))
        seen = np.full((strategy.levels - first + 1, strategy.places()), NOTHING, np.int64)
        scores = np.zeros(seen.shape)
        reports, sent, estimates = 0, 0.0, np.zeros(len(prefixes))
        for at, level in enumerate(range(first, strategy.levels + 1)):
            users = self.users(cohort, row, level)
            users = users >> (bits[-1] - bits[level])
            known, score = known_LW[at], score_LW[at]
            known, score = known[known != NOTHING], score[known != NOTHING]
            candidates = tree.extend(prefixes, int(bits[level] - bits[level - 1]))
            running = known[tree.best(score, k)] if level == strategy.levels else known[:0]
            candidates = np.concatenate([candidates, running[~np.isin(running, candidates)]])
            coins = reporter.coins(cohort.server_round, client, f"level-{level}")
            asked = round(strategy.vote * len(users))
            lowest = self.proposal(candidates, known, score, running)
            if len(lowest) and asked:
                votes, users = users[:asked], users[asked:]
                question = reporter.oracle(np.ones(1, np.int64))
                total = question.total(np.where(np.isin(votes, lowest), 1, 0), coins)
                mass = float(question.estimate(total, asked)[0])
                if mass < CONSENSUS * float(np.sqrt(question.variance(asked))):
                    candidates = candidates[~np.isin(candidates, lowest)]
                sent, reports = sent + asked * question.report_bits, reports + asked
            oracle = reporter.oracle(candidates)
            estimates = oracle.estimate(oracle.total(users, coins), len(users))
            std = float(np.sqrt(oracle.variance(max(len(users), 1))))
            order = tree.best(estimates, strategy.local_width(estimates, std, level))
            seen[at, : len(candidates)], scores[at, : len(candidates)] = (
                candidates,
                size * estimates,
            )
            reports, sent = reports + len(users), sent + len(users) * oracle.report_bits
            if level == strategy.levels:  # everybody votes on the running top k
                voted = np.isin(candidates, running) & ~_among(order, candidates)
                order = np.concatenate([order, np.flatnonzero(voted)])
            prefixes, estimates = candidates[order], estimates[order]
        own = upload(prefixes, size * estimates, 2 * k, reports, sent)
        own.upload[SEEN], own.upload[SCORES] = torch.from_numpy(seen), torch.from_numpy(scores)
        return own

    def proposal(
        self, candidates: np.ndarray, known: np.ndarray, score: np.ndarray, running: np.ndarray
    ) -> np.ndarray:
        """Return R."""
        here = np.isin(known, candidates) & ~np.isin(known, running)
        known, score = known[here], score[here]
        most = min(int(self.strategy.prune * len(candidates)), len(candidates) - self.strategy.k)
        lowest: np.ndarray = known[np.argsort(score, kind="stable")[: max(most, 0)]]
        return lowest


def _among(order: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return which candidates are at some places, bool `[D]`."""
    chosen = np.zeros(len(candidates), bool)
    chosen[order] = True
    return chosen


class PruningHalf(SearchHalf):
    """Answers about shared candidates, or does a whole Phase II."""

    def __init__(self, strategy: TAPS) -> None:
        super().__init__(strategy)
        self.descent: PruningDescent = PruningDescent(strategy)

    def run(self, cohort: Cohort) -> Worked:
        level = int(cohort.start[LEVEL])
        if level <= self.strategy.shared():
            return super().run(cohort)
        candidates = cohort.start[CANDIDATES].cpu().numpy()
        rows = range(len(cohort))
        alone = [self.descent.pruned(cohort, row, level, candidates).upload for row in rows]
        return Worked(
            arrays={}, upload={n: torch.stack([one[n] for one in alone]) for n in alone[0]}
        )


@dataclass(kw_only=True)
class TAPS(TAP):
    """Clients search one after another.

    Attributes:
        prune: γ.
        vote: β.
    """

    prune: Annotated[float, Range(ge=0, le=1)] = 0.5
    vote: Annotated[float, Range(ge=0, lt=1)] = 0.1

    @property
    def client_half(self) -> QueryHalf:
        return PruningHalf(self)

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        self._order = np.argsort(-sizes_N, kind="stable")
        self._some = int((sizes_N > 0).sum())
        return super().begin(dataset, sizes_N)

    def _forget(self) -> None:
        super()._forget()
        self.running: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.sent = np.empty((0, 2))

    def rounds(self) -> int:
        return self.shared() + self._some

    def asks(self, server_round: int, here: np.ndarray) -> np.ndarray:
        turn = server_round - self.shared() - 1
        if turn < 0:
            return here
        mine: np.ndarray = here[here == self._order[turn]]
        return mine

    def places(self) -> int:
        """Return W: the most candidates of a local level."""
        step = int(np.diff(self.bits_of_levels)[self.shared() :].max())
        widest = max(self.widening, self.local_widening)
        return (round(widest * self.k) << step) + self.k

    def question(self, context: Round) -> Params:
        if context.server_round <= self.shared():
            return super().question(context)
        first = self.shared() + 1
        levels = range(first, self.levels + 1)
        known = [self.running.get(level, (np.empty(0, np.int64), np.empty(0))) for level in levels]
        widest = max(max(len(prefixes) for prefixes, _ in known), 1)
        seen_LW = np.full((len(known), widest), NOTHING, np.int64)
        score_LW = np.zeros(seen_LW.shape)
        for at, (prefixes, score) in enumerate(known):
            seen_LW[at, : len(prefixes)], score_LW[at, : len(prefixes)] = prefixes, score
        return {
            LEVEL: torch.tensor(first),
            CANDIDATES: torch.from_numpy(self.kept),
            SEEN: torch.from_numpy(seen_LW),
            SCORES: torch.from_numpy(score_LW),
        }

    def upload_like(self, context: Round) -> Params:
        if context.server_round <= self.shared():
            return super().upload_like(context)
        shape = (self.levels - self.shared(), self.places())
        return {
            ITEMS: torch.zeros(2 * self.k, dtype=torch.int64),
            COUNTS: torch.zeros(2 * self.k, dtype=torch.float64),
            REPORTS: torch.tensor(0),
            SENT: torch.zeros((), dtype=torch.float64),
            SEEN: torch.zeros(shape, dtype=torch.int64),
            SCORES: torch.zeros(shape, dtype=torch.float64),
        }

    def _aggregate_local(self, context: Round, replies: Replies) -> Params:
        sent = [self.sent]
        for chunk in replies.chunks():
            own = {name: t.cpu().numpy() for name, t in chunk.client_arrays.items()}
            self.note(chunk.client_arrays)
            sent.append(np.stack([own[ITEMS].ravel(), own[COUNTS].ravel()], axis=1))
            for seen_LW, score_LW in zip(own[SEEN], own[SCORES], strict=True):
                for at, level in enumerate(range(self.shared() + 1, self.levels + 1)):
                    self._learn(level, seen_LW[at], score_LW[at])
        self.sent = np.concatenate(sent)
        items, counts = self.sent[:, 0].astype(np.int64), self.sent[:, 1]
        return self.sum_up(context.params, items, counts)

    def _learn(self, level: int, prefixes: np.ndarray, scores: np.ndarray) -> None:
        """Add one client's N_j f̂_j to S."""
        before, old = self.running.get(level, (prefixes[:0], scores[:0]))
        real = prefixes != NOTHING
        every = np.concatenate([before, prefixes[real]])
        known, at = np.unique(every, return_inverse=True)
        total = np.bincount(at, weights=np.concatenate([old, scores[real]]))
        self.running[level] = known, total

    def state_dict(self) -> State:
        state = super().state_dict()
        for level, (prefixes, scores) in self.running.items():
            state[f"level-{level}/seen"], state[f"level-{level}/scores"] = prefixes, scores
        return state | {"sent": self.sent}

    def load_state_dict(self, state: State) -> None:
        own = {n: v for n, v in state.items() if n.endswith(("/seen", "/scores")) or n == "sent"}
        super().load_state_dict({n: v for n, v in state.items() if n not in own})
        self.sent = np.asarray(own.get("sent", np.empty((0, 2))), np.float64).reshape(-1, 2)
        for name, prefixes in own.items():
            if name.endswith("/seen"):
                level = int(name.removeprefix("level-").partition("/")[0])
                scores = np.asarray(own[f"level-{level}/scores"], np.float64)
                self.running[level] = np.asarray(prefixes, np.int64), scores
