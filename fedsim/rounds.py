"""The round loop over any Flower `Grid`. Read this first.

    participation picks clients ─▶ strategy.configure_train ─▶ grid (engine) ─▶ admission
       ─▶ strategy.aggregate_train ─▶ evaluation ─▶ checkpoint, metrics, progress

Flower's own `Strategy.start` has no resume, no callbacks and no admission; this loop calls the
same four strategy methods with the same arguments, so any Flower strategy runs in it unchanged.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim import seeds
from fedsim.admission import Admission, AdmittedReplies
from fedsim.engines.base import LocalGrid
from fedsim.participation.base import Schedule
from fedsim.records import Params, to_record, to_tensors
from fedsim.strategy import FedsimStrategy


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round; one line of `metrics.jsonl`.

    Attributes:
        server_round: 1, 2, ...; 0 is the evaluation before the first round.
        asked: Clients that were asked to train.
        admitted: Client indices whose replies were used.
        rejected: reason -> count.
        details: The first few rejections in words.
        train, clients, central: Metrics averaged over training clients, over evaluating clients,
            and of the central test set; empty where not measured.
        per_client: The evaluating clients' own metrics, name -> values; `client-index` first.
        seconds: Wall time of the round.
    """

    server_round: int
    asked: int = 0
    admitted: list[int] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    train: dict[str, float] = field(default_factory=dict)
    clients: dict[str, float] = field(default_factory=dict)
    central: dict[str, float] = field(default_factory=dict)
    per_client: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Who evaluates, and when.

    Attributes:
        central: Scores a model on the server's test set; None to leave it out.
        clients: Whether clients evaluate as well.
        every: Rounds between evaluations; the last round is always evaluated.
    """

    central: Callable[[Params], dict[str, float]] | None
    clients: bool
    every: int

    def due(self, server_round: int, last_round: int) -> bool:
        """Whether a round is evaluated."""
        return server_round % self.every == 0 or server_round == last_round


@dataclass(kw_only=True)
class RoundLoop:
    """Everything one run's rounds need; `run` yields after each of them.

    Attributes:
        strategy: Any Flower strategy.
        grid: Any Flower grid.
        schedule: Who takes part; third-party strategies sample among these.
        admission, evaluation: The rules.
        seed: The scenario's.
        last_round: The run ends after this round.
    """

    strategy: Strategy
    grid: Grid
    schedule: Schedule
    admission: Admission
    evaluation: Evaluation
    seed: int
    last_round: int

    def run(self, params: Params, done: int = 0) -> Iterator[tuple[Params, RoundReport]]:
        """Run rounds `done + 1 .. last_round`, yielding the model and a report after each.

        A fresh run (`done = 0`) first yields round 0: the evaluation of the initial model.
        """
        if done == 0 and self.evaluation.central is not None:
            started = time.perf_counter()
            scores = self.evaluation.central(params)
            seconds = time.perf_counter() - started
            yield params, RoundReport(server_round=0, central=scores, seconds=seconds)
        for server_round in range(done + 1, self.last_round + 1):
            started = time.perf_counter()
            params, train = self.train(server_round, params)
            clients, central = AdmittedReplies.nothing(), {}
            if self.evaluation.due(server_round, self.last_round):
                if self.evaluation.clients:
                    clients = self._evaluate(server_round, params)
                if self.evaluation.central is not None:
                    central = self.evaluation.central(params)
            yield (
                params,
                RoundReport(
                    server_round=server_round,
                    asked=train.asked,
                    admitted=train.admitted,
                    rejected=dict(train.rejected),
                    details=train.details,
                    train=train.mean_metrics(),
                    clients=clients.mean_metrics(),
                    central=central,
                    per_client=clients.per_client(),
                    seconds=time.perf_counter() - started,
                ),
            )

    def train(self, server_round: int, params: Params) -> tuple[Params, AdmittedReplies]:
        """Run one training exchange; return the next model and the replies it was made of."""
        arrays = self._record(params)
        with self._participants(server_round) as someone:
            if not someone and not isinstance(self.strategy, FedsimStrategy):
                return params, AdmittedReplies.nothing()  # Flower's own would wait for ever
            sent = self.strategy.configure_train(server_round, arrays, ConfigRecord(), self.grid)
        replies = self._exchange(sent, params)
        new_arrays, _ = self.strategy.aggregate_train(server_round, replies)
        if new_arrays is None or not len(new_arrays):
            return params, replies
        return self._like(params, new_arrays), replies

    def _evaluate(self, server_round: int, params: Params) -> AdmittedReplies:
        arrays = self._record(params)
        with self._participants(server_round) as someone:
            if not someone and not isinstance(self.strategy, FedsimStrategy):
                return AdmittedReplies.nothing()
            sent = self.strategy.configure_evaluate(
                server_round, arrays, ConfigRecord(), self.grid
            )
        replies = self._exchange(sent, None)
        self.strategy.aggregate_evaluate(server_round, replies)
        return replies

    def _exchange(self, sent: Iterable[Message], expected: Params | None) -> AdmittedReplies:
        sent = sent if isinstance(sent, Sequence) else list(sent)
        extra: Mapping[str, Tensor] = {}
        if expected is not None and isinstance(self.strategy, FedsimStrategy):
            extra = self.strategy.expected_upload
        received = self.grid.send_and_receive(sent, timeout=self.admission.timeout_s)
        return self.admission.admit(sent, received, expected, extra)

    @contextmanager
    def _participants(self, server_round: int) -> Iterator[bool]:
        """Let third-party strategies see (and sample) this round's participants, by a keyed draw.

        Flower samples with the global `random` module; it is seeded for the call and put back.
        """
        if isinstance(self.strategy, FedsimStrategy) or not isinstance(self.grid, LocalGrid):
            yield True
            return
        clients = self.schedule.select(server_round)
        key = seeds.sequence(self.seed, server_round, seeds.SERVER, "flower-sampling")
        before = random.getstate()
        random.seed(int(key.generate_state(1, np.uint64)[0]))
        self.grid.set_available(clients)
        try:
            yield len(clients) > 0
        finally:
            self.grid.set_available(None)
            random.setstate(before)

    def _record(self, params: Params) -> ArrayRecord:
        return to_record(params, zero_copy=bool(getattr(self.grid, "zero_copy", False)))

    @staticmethod
    def _like(params: Params, arrays: ArrayRecord) -> Params:
        """Return a strategy's result in the model's dtypes; some of Flower's change them."""
        new = to_tensors(arrays)
        return {
            name: (new[name].round() if not t.is_floating_point() else new[name]).to(t.device, t.dtype)
            for name, t in params.items()
        }

