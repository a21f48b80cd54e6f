"""TrieHH (Zhu, Kairouz, McMahan, Sun & Li, AISTATS 2020, arXiv:1902.08534): a trie grown by votes.

    level h = 1..L:  each user votes with probability r for its prefix of b_h bits, if the one of
                     b_{h−1} bits was kept;  the prefixes with θ votes or more are kept
    release:         the k items of most votes, and their votes / r

Central DP: the clients' votes are added up by a server that shows what is kept only; r, θ and the
claim are those of `privacy.sample_threshold`. Without a mechanism everybody votes, and the k
prefixes of most votes go on.

Differs from the paper: users toss a coin each, where a fixed number of them is drawn; prefixes are
of bits, not of letters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.client.whole import Cohort, Worked
from fedsim.query import QueryHalf
from fedsim.records import Params, Replies
from fedsim.strategy import Round
from privacy.frequency_oracles.truth import Truth
from privacy.sample_threshold import Voting
from strategies.heavy_hitters import tree
from strategies.heavy_hitters.search import CANDIDATES, LEVEL, REPORTS, SENT, SUPPORTS, Search


class Votes(QueryHalf):
    """Counts the votes of sampled users."""

    def __init__(self, strategy: TrieHH) -> None:
        self.strategy = strategy

    def run(self, cohort: Cohort) -> Worked:
        level, ballot = int(cohort.start[LEVEL]), self.strategy.ballot
        candidates = cohort.start[CANDIDATES].cpu().numpy()
        bits = self.strategy.bits_of_levels
        exact = Truth(1.0, candidates if len(candidates) else np.zeros(1, np.int64))
        votes, counts = [], []
        for row, client in enumerate(cohort.clients.tolist()):
            coins = ballot.coins(cohort.server_round, client)
            users = cohort.inputs(row).cpu().numpy()
            if ballot.rate < 1:
                users = users[coins.uniform(len(users)) < ballot.rate]
            total = exact.total(users >> (bits[-1] - bits[level]), coins)
            votes.append(total[: len(candidates)])  # none, where nothing was kept before
            counts.append(len(users))
        reports_K = torch.tensor(counts)
        return Worked(
            arrays={},
            upload={
                SUPPORTS: torch.from_numpy(np.stack(votes)),
                REPORTS: reports_K,
                SENT: reports_K.double() * exact.report_bits,
            },
        )


@dataclass(kw_only=True)
class TrieHH(Search, Voting):
    """Every level is shared."""

    reports_once = False

    @property
    def client_half(self) -> QueryHalf:
        return Votes(self)

    def shared(self) -> int:
        return self.levels

    def _aggregate_shared(self, context: Round, replies: Replies) -> Params:
        level, total = context.server_round, np.zeros(len(self._candidates))
        for chunk in replies.chunks():
            self.note(chunk.client_arrays)
            total += chunk.client_arrays[SUPPORTS].sum(0).double().cpu().numpy()
        order = tree.best(total, len(total))
        order = order[total[order] >= self.ballot.threshold]
        if self.ballot.rate == 1:
            order = order[: self.k]
        self.kept = self._candidates[order]
        self.history[level] = self._candidates, np.isin(self._candidates, self.kept)
        counts = total[order] / self.ballot.rate
        return self.released(context.params, self.kept, counts, int(self.bits_of_levels[level]))
