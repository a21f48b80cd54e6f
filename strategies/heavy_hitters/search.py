"""A search down the prefix tree: what PEM, GTF, FedPEM and TAP have in common.

    shared level h (one round each): every client's group of level h reports on common candidates
        f̂ = Σ_i w_i f̂_i / Σ_i w_i over the clients i with reports;  the t_h largest go on
    local levels (one round in all): each client goes on down by itself, with its other groups, and
        sends its k best items and their counts N_i max(f̂, 0), which the server adds up
    release: the k items of largest count

What is sent of a client is the sum of its users' reports (`privacy.local_reports`): how many of n
support each candidate. Which user reports at which level is public (`tree.assign`).

Shapes: D candidates, K clients of a round, k items of the release.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.client.whole import Cohort, Worked
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError, ResumeError
from fedsim.parts import Range
from fedsim.query import Costs, Findings, QueryHalf
from fedsim.records import Params, Replies
from fedsim.strategy import Round, State
from privacy.local_reports import LocalReporting
from strategies.heavy_hitters import measures, picture, tree
from strategies.heavy_hitters.tree import NOTHING

ITEMS, COUNTS, BITS = "items", "counts", "bits"
"""The release: the best k items, or prefixes, so far; their counts; how many bits they have."""

LEVEL, CANDIDATES, SUPPORTS = "level", "candidates", "supports"
REPORTS, SENT = "reports", "report-bits"
"""Of an answer: how many users have reported, and the bits of all their reports."""


class Descent:
    """One client's users, level by level, and how they report: the client side of a search.

    Args:
        strategy: Says how users report, and how far the tree goes.
    """

    def __init__(self, strategy: Search) -> None:
        self.strategy = strategy
        self._items: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def users(self, cohort: Cohort, row: int, level: int) -> np.ndarray:
        """Return the items of the users that report at a level (1, 2, ...)."""
        client, levels = int(cohort.clients[row]), self.strategy.levels
        if client not in self._items:
            items = cohort.inputs(row).cpu().numpy()
            at = tree.assign(cohort.seed, client, len(items), self.strategy.shares())
            order = np.argsort(at, kind="stable")
            ends = np.searchsorted(at[order], np.arange(levels + 1))
            self._items[client] = items[order], ends
        items, ends = self._items[client]
        return items[ends[level - 1] : ends[level]]

    def local(self, cohort: Cohort, row: int, first: int, prefixes: np.ndarray) -> Worked:
        """Go down from level `first` on by oneself; return the best k items and their counts.

        Args:
            cohort: Of the round.
            row: Which client.
            first: The first level that is this client's own.
            prefixes: What was kept at the level before.
        """
        strategy, client = self.strategy, int(cohort.clients[row])
        bits, reporter = strategy.bits_of_levels, strategy.reporter
        reports, sent, estimates = 0, 0.0, np.zeros(len(prefixes))
        for level in range(first, strategy.levels + 1):
            users = self.users(cohort, row, level)
            candidates = tree.extend(prefixes, int(bits[level] - bits[level - 1]))
            oracle = reporter.oracle(candidates)
            coins = reporter.coins(cohort.server_round, client, f"level-{level}")
            total = oracle.total(users >> (bits[-1] - bits[level]), coins)
            estimates = oracle.estimate(total, len(users))
            std = float(np.sqrt(oracle.variance(max(len(users), 1))))
            order = tree.best(estimates, strategy.local_width(estimates, std, level))
            prefixes, estimates = candidates[order], estimates[order]
            reports, sent = reports + len(users), sent + len(users) * oracle.report_bits
        return upload(prefixes, cohort.counts[row] * estimates, strategy.k, reports, sent)


def upload(items: np.ndarray, counts: np.ndarray, k: int, reports: int, sent: float) -> Worked:
    """Return what one client sends of its own search: its best k, padded."""
    found, weights = np.full(k, NOTHING, np.int64), np.zeros(k)
    found[: len(items)], weights[: len(items)] = items[:k], np.maximum(counts[:k], 0)
    return Worked(
        arrays={},
        upload={
            ITEMS: torch.from_numpy(found),
            COUNTS: torch.from_numpy(weights),
            REPORTS: torch.tensor(reports),
            SENT: torch.tensor(sent, dtype=torch.float64),
        },
    )


class SearchHalf(QueryHalf):
    """Answers about shared candidates, or goes on by itself."""

    def __init__(self, strategy: Search) -> None:
        self.strategy, self.descent = strategy, Descent(strategy)

    def run(self, cohort: Cohort) -> Worked:
        level = int(cohort.start[LEVEL])
        candidates = cohort.start[CANDIDATES].cpu().numpy()
        if level > self.strategy.shared():
            alone = [
                self.descent.local(cohort, row, level, candidates).upload
                for row in range(len(cohort))
            ]
            return Worked(
                arrays={}, upload={n: torch.stack([one[n] for one in alone]) for n in alone[0]}
            )
        bits, reporter = self.strategy.bits_of_levels, self.strategy.reporter
        oracle = reporter.oracle(candidates)
        supports, reports = [], []
        for row, client in enumerate(cohort.clients.tolist()):
            users = self.descent.users(cohort, row, level)
            coins = reporter.coins(cohort.server_round, client, f"level-{level}")
            supports.append(oracle.total(users >> (bits[-1] - bits[level]), coins))
            reports.append(len(users))
        reports_K = torch.tensor(reports)
        return Worked(
            arrays={},
            upload={
                SUPPORTS: torch.from_numpy(np.stack(supports)),
                REPORTS: reports_K,
                SENT: reports_K.double() * oracle.report_bits,
            },
        )


@dataclass(kw_only=True)
class Search(LocalReporting, abc.ABC):
    """The server side.

    Attributes:
        k: How many heavy hitters are wanted.
        levels: g.
    """

    k: Annotated[int, Range(ge=1, le=10_000)] = 10
    levels: Annotated[int, Range(ge=1, le=62)] = 24

    population_weights: ClassVar[bool] = True
    """Whether clients count by their numbers of users at shared levels, or all alike."""

    # --- what a method says ----------------------------------------------------------------------

    @abc.abstractmethod
    def shared(self) -> int:
        """Return how many levels are shared: 0..levels."""

    def shares(self) -> np.ndarray:
        """Return which share of the users reports at each level; by default, all alike."""
        return np.full(self.levels, 1 / self.levels)

    def width(self, estimates: np.ndarray, std: float, level: int) -> int:
        """Return how many candidates of a shared level are kept; by default, k."""
        return self.k

    def local_width(self, estimates: np.ndarray, std: float, level: int) -> int:
        """Return the same of a client's own level."""
        return self.k

    # --- the search ------------------------------------------------------------------------------

    @property
    def client_half(self) -> QueryHalf:
        return SearchHalf(self)

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        if dataset.items is None:
            raise ConfigError(
                f"{type(self).__name__} counts items, and data set '{dataset.name}' has none; use "
                "data=zipf, baby_names or shakespeare_words"
            )
        bits = dataset.items.bits
        if self.levels > bits:
            raise ConfigError(
                f"levels: {self.levels}, but items have {bits} bits; set strategy.levels={bits} or "
                "less, or more bits (data.bits)"
            )
        self.bits_of_levels = tree.level_bits(bits, self.levels)
        self.costs = Costs(len(sizes_N))
        self._users = float(sizes_N.sum())
        self._forget()
        return {
            ITEMS: torch.full((self.k,), NOTHING),
            COUNTS: torch.zeros(self.k, dtype=torch.float64),
            BITS: torch.tensor(0),
        }

    def _forget(self) -> None:
        self.kept = np.zeros(1, np.int64)
        self.history: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.uploads = np.empty((0, 2))
        self._reports, self._sent_bits = 0.0, 0.0

    def rounds(self) -> int:
        return self.shared() + (self.shared() < self.levels)

    def question(self, context: Round) -> Params:
        level = context.server_round
        if level == 1:
            self._forget()
        candidates = self._candidates = self.candidates(context)
        return {LEVEL: torch.tensor(level), CANDIDATES: torch.from_numpy(candidates)}

    def candidates(self, context: Round) -> np.ndarray:
        """Return what the clients of a round are asked about, or go on from."""
        level, bits = context.server_round, self.bits_of_levels
        if level > self.shared():
            return self.kept
        return tree.extend(self.kept, int(bits[level] - bits[level - 1]))

    def upload_like(self, context: Round) -> Params:
        more = {REPORTS: torch.tensor(0), SENT: torch.zeros((), dtype=torch.float64)}
        if context.server_round <= self.shared():
            return {SUPPORTS: torch.zeros(len(self._candidates), dtype=torch.int64), **more}
        return {
            ITEMS: torch.zeros(self.k, dtype=torch.int64),
            COUNTS: torch.zeros(self.k, dtype=torch.float64),
            **more,
        }

    def aggregate(self, context: Round, replies: Replies) -> Params:
        self.costs.add(context.asked, self.exchanged)
        if context.server_round <= self.shared():
            return self._aggregate_shared(context, replies)
        return self._aggregate_local(context, replies)

    def _aggregate_shared(self, context: Round, replies: Replies) -> Params:
        oracle, level = self.reporter.oracle(self._candidates), context.server_round
        total, weight, variance, users = np.zeros(len(self._candidates)), 0.0, 0.0, 0.0
        for chunk in replies.chunks():
            self.note(chunk.client_arrays)
            n_K = chunk.client_arrays[REPORTS].double().cpu().numpy()
            size_K = chunk.num_examples
            users += float(size_K.sum())
            some = n_K > 0
            w_K = size_K[some] if self.population_weights else np.ones(int(some.sum()))
            share_KD = chunk.client_arrays[SUPPORTS].double().cpu().numpy()[some]
            share_KD = share_KD / n_K[some, None]
            total += w_K @ ((share_KD - oracle.q) / (oracle.p - oracle.q))
            weight += float(w_K.sum())
            variance += float((w_K**2 / n_K[some]).sum()) * float(oracle.variance(1))
        if not weight:
            return context.params  # nobody has reported: what is kept is as good as before
        estimates, std = total / weight, float(np.sqrt(variance)) / weight
        order = tree.best(estimates, self.width(estimates, std, level))
        self.kept = self._candidates[order]
        self.history[level] = self._candidates, np.isin(self._candidates, self.kept)
        counts = users * np.maximum(estimates[order], 0)
        return self.released(context.params, self.kept, counts, int(self.bits_of_levels[level]))

    def _aggregate_local(self, context: Round, replies: Replies) -> Params:
        items, counts = [], []
        for chunk in replies.chunks():
            self.note(chunk.client_arrays)
            items.append(chunk.client_arrays[ITEMS].cpu().numpy().reshape(-1))
            counts.append(chunk.client_arrays[COUNTS].cpu().numpy().reshape(-1))
        if not items:
            return context.params
        return self.sum_up(context.params, np.concatenate(items), np.concatenate(counts))

    def sum_up(self, release: Params, items: np.ndarray, counts: np.ndarray) -> Params:
        """Release the items of largest total count of what clients have sent."""
        real = (items != NOTHING) & (counts > 0)
        if not real.any():
            return release
        found, at = np.unique(items[real], return_inverse=True)
        totals = np.bincount(at, weights=counts[real])
        order = tree.best(totals, len(totals))
        self.uploads = np.stack([found[order].astype(np.float64), totals[order]], axis=1)
        return self.released(release, found[order], totals[order], int(self.bits_of_levels[-1]))

    def released(self, release: Params, items: np.ndarray, counts: np.ndarray, bits: int) -> Params:
        """Return a release of the first k of some items."""
        count = min(self.k, len(items))
        new = {ITEMS: torch.full((self.k,), NOTHING), COUNTS: torch.zeros_like(release[COUNTS])}
        new[ITEMS][:count] = torch.from_numpy(items[:count].astype(np.int64))
        new[COUNTS][:count] = torch.from_numpy(counts[:count])
        return {**{n: t.to(release[n].device) for n, t in new.items()}, BITS: torch.tensor(bits)}

    def note(self, answers: Mapping[str, Tensor]) -> None:
        """Count the reports of some answers, and their bits."""
        self._reports += float(answers[REPORTS].sum())
        self._sent_bits += float(answers[SENT].sum())

    # --- what is said ----------------------------------------------------------------------------

    def score(self, release: Params, dataset: Dataset) -> dict[str, float]:
        """F1, NCR and relative error of the release: of prefixes before the last round."""
        bits = int(release[BITS])
        if not bits:
            return {"f1": 0.0, "ncr": 0.0, "relative-error": 1.0}
        items, counts = (release[name].cpu().numpy() for name in (ITEMS, COUNTS))
        true, held = measures.true_counts(dataset, bits)
        return {
            **measures.scores(items, counts, true, held, self.k),
            "bytes-per-user": self._sent_bits / 8 / max(self._reports, 1),
            "bytes-per-party": float(self.costs.bytes_N.mean()),
        }

    def findings(self, release: Params, dataset: Dataset) -> Findings:
        """The list of heavy hitters, and the tree as it grew."""
        return picture.findings(self, release, dataset)

    def state_dict(self) -> State:
        state: State = {
            "kept": self.kept,
            "uploads": self.uploads,
            "bytes": self.costs.bytes_N,
            "reports": self._reports,
            "sent-bits": self._sent_bits,
        }
        for level, (candidates, kept) in self.history.items():
            state[f"level-{level}/candidates"] = candidates
            state[f"level-{level}/kept"] = kept
        return state

    def load_state_dict(self, state: State) -> None:
        names = {"kept", "uploads", "bytes", "reports", "sent-bits"}
        levels = {key for key in state if key.startswith("level-")}
        if set(state) - levels != names:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)}, which is not that of "
                f"{type(self).__name__}; was the strategy changed?"
            )
        self._forget()
        self.kept = np.asarray(state["kept"], np.int64)
        self.uploads = np.asarray(state["uploads"], np.float64).reshape(-1, 2)
        self.costs.bytes_N = np.asarray(state["bytes"], np.float64)
        self._reports, self._sent_bits = float(state["reports"]), float(state["sent-bits"])
        for key in sorted(levels):
            level = int(key.removeprefix("level-").partition("/")[0])
            if key.endswith("/candidates"):
                kept = np.asarray(state[f"level-{level}/kept"], bool)
                self.history[level] = np.asarray(state[key], np.int64), kept
