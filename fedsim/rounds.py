"""The round loop over any Flower `Grid`. Read this first.

    participation picks clients ─▶ strategy.configure_train ─▶ grid (engine) [─▶ attack]
       ─▶ admission [─▶ privacy] ─▶ strategy.aggregate_train ─▶ evaluation ─▶ checkpoint, metrics

Where a privacy mechanism is at work, a round is written to the ledger before anybody is asked.

Flower's own `Strategy.start` has no resume, no callbacks and no admission; this loop calls the
same four strategy methods with the same arguments, so any Flower strategy runs in it unchanged.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim import seeds, third_party
from fedsim.admission import Admission, AdmittedReplies
from fedsim.asynchronous import AsynchronousStrategy
from fedsim.attack.base import Tamper
from fedsim.clock import Clock
from fedsim.compression.update import Compressor
from fedsim.errors import ConfigError
from fedsim.footprint import Meter, content_bytes
from fedsim.pace.gate import Pace
from fedsim.participation.base import Schedule
from fedsim.participation.timed import begin
from fedsim.protection.base import Protection
from fedsim.records import (
    EVALUATE,
    Chunk,
    Instructions,
    Params,
    aligned,
    is_finite,
    to_record,
    to_tensors,
)
from fedsim.strategy import FedsimStrategy


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round; one line of `metrics.jsonl`.

    Attributes:
        server_round: 1, 2, ...; 0 is the evaluation before the first round.
        asked: Clients that were asked to train.
        admitted: Client indices whose replies were used.
        late: Clients that were asked and had not answered when the exchange ended.
        arrived_late: Of those whose replies were used, how many were asked, and late, before.
        rejected: reason -> count.
        details: The first few rejections in words, of training and of evaluation.
        train, clients, central: Metrics averaged over training clients, over evaluating clients,
            and of the central test set; empty where not measured.
        per_client: The evaluating clients' own metrics, name -> values; `client-index` first.
        diagnostics: What an observer says of the round, and, if it is evaluated, the strategy.
        epsilon: An upper bound of what all rounds so far have cost; None without a mechanism.
        privacy: The same with its delta, unit and relation, in words; never show it without.
        budget: The epsilon, of the same delta, at which the run stops; None for none.
        seconds: Wall time of the round.
        footprint: Exchange -> what it took of its clients; see `fedsim.footprint`. Empty without a
            device profile.
        simulated_seconds: Since the start of the run, on devices of that profile; see
            `fedsim.clock`. None where they cannot be told.
    """

    server_round: int
    asked: int = 0
    admitted: list[int] = field(default_factory=list)
    late: int = 0
    arrived_late: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    train: dict[str, float] = field(default_factory=dict)
    clients: dict[str, float] = field(default_factory=dict)
    central: dict[str, float] = field(default_factory=dict)
    per_client: dict[str, list[float]] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    privacy: str = ""
    budget: float | None = None
    seconds: float = 0.0
    footprint: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    simulated_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Who evaluates, and when.

    Attributes:
        central: Scores a model on the server's test set; None to leave it out.
        clients: Whether clients evaluate as well.
        every: Rounds between evaluations; the last round is always evaluated.
        fused: Clients score the model as they receive it for training, in the same exchange.
    """

    central: Callable[[Params], dict[str, float]] | None
    clients: bool
    every: int
    fused: bool = False

    def due(self, server_round: int, last_round: int) -> bool:
        """Whether a round is evaluated."""
        return server_round % self.every == 0 or server_round == last_round


class Observer(abc.ABC):
    """Sees the local models that a round's model is made of, whatever the strategy."""

    @abc.abstractmethod
    def begin(self, clients: np.ndarray) -> None:
        """Start a round in which `clients` (sorted indices) were asked."""

    @abc.abstractmethod
    def see(self, chunk: Chunk) -> None:
        """Look at admitted replies as they are drawn; the chunk is valid until this returns."""

    @abc.abstractmethod
    def end(self, params: Params) -> dict[str, float]:
        """Return what there is to say, now that the round's model is known."""


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
        tamper: What attackers do to the replies of a training exchange; None without an attack.
        observer: Sees each training exchange; None to leave it out.
        compressor: What decodes the updates that clients send; None if they send models.
        meter: Measures what exchanges take of clients; None to leave it out, and the clock.
        pace: Closes training exchanges before all replies are in; needs `meter`. None to wait.
        protection: The privacy mechanism.
        frozen: Names of the tensors that stay as they are for good, whatever a strategy or a client
            makes of them: a float mean of equal tensors need not be that tensor, and an adaptive
            server step magnifies what rounding leaves.
        charge: Puts what a round will release to (round, clients) on record before it happens, and
            returns epsilon so far; None where nothing is kept (`fedsim plan`).
    """

    strategy: Strategy
    grid: Grid
    schedule: Schedule
    admission: Admission
    evaluation: Evaluation
    seed: int
    last_round: int
    tamper: Tamper | None = None
    observer: Observer | None = None
    compressor: Compressor | None = None
    meter: Meter | None = None
    pace: Pace | None = None
    protection: Protection = field(default_factory=Protection)
    charge: Callable[[int, np.ndarray], float | None] | None = None
    frozen: Collection[str] = ()

    def run(self, params: Params, done: int = 0) -> Iterator[tuple[Params, RoundReport]]:
        """Run rounds `done + 1 .. last_round`, yielding the model and a report after each.

        A fresh run (`done = 0`) first yields round 0: the evaluation of the initial model.

        Raises:
            BudgetError: The next round would cross the privacy budget.
        """
        if self.charge is not None:
            self.charge(0, np.arange(0))
        params = aligned(params)
        if done == 0 and self.evaluation.central is not None:
            started = time.perf_counter()
            scores = self.evaluation.central(params)
            seconds = time.perf_counter() - started
            yield (
                params,
                RoundReport(
                    server_round=0,
                    central=scores,
                    seconds=seconds,
                    simulated_seconds=None if self.meter is None else self.clock.seconds,
                ),
            )
        for server_round in range(done + 1, self.last_round + 1):
            started = time.perf_counter()
            self._begin(server_round)
            due, fused = self.evaluation.due(server_round, self.last_round), self.evaluation.fused
            params, train = self.train(server_round, params, score=due and fused)
            diagnostics = {}
            if self.observer is not None and train.admitted:
                diagnostics = self.observer.end(params)
            clients, central = AdmittedReplies.nothing(), {}
            if due:
                if isinstance(self.strategy, FedsimStrategy):
                    diagnostics |= self.strategy.diagnostics()
                if self.evaluation.clients and not fused:
                    clients = self._evaluate(server_round, params)
                if self.evaluation.central is not None:
                    central = self.evaluation.central(params)
            scores, per_client = clients.mean_metrics(), clients.per_client()
            if fused:
                scores, per_client = train.received()
            footprint = {}
            if self.meter is not None:
                exchanges = {"train": train, "evaluate": clients}
                footprint = {k: self.meter.footprint(k, e) for k, e in exchanges.items() if e.asked}
                self._pass(train, footprint)
            arrived = [] if train.gate is None else train.gate.arrived
            yield (
                params,
                RoundReport(
                    server_round=server_round,
                    asked=train.asked,
                    admitted=[*train.admitted, *arrived],
                    late=train.late,
                    arrived_late=len(arrived),
                    rejected=dict(train.rejected),
                    details=train.details + clients.details,
                    train=train.mean_metrics(),
                    clients=scores,
                    central=central,
                    per_client=per_client,
                    diagnostics=diagnostics,
                    epsilon=self._epsilon,
                    privacy="" if self._epsilon is None else self.protection.words(self._epsilon),
                    budget=None if self._epsilon is None else self.protection.budget(),
                    seconds=time.perf_counter() - started,
                    footprint=footprint,
                    simulated_seconds=None if self.meter is None else self.clock.seconds,
                ),
            )

    def __post_init__(self) -> None:
        self._epsilon: float | None = None
        self.clock = Clock()

    def _begin(self, server_round: int) -> None:
        """Tell a timed schedule when the round begins: later, if nobody is there and nobody busy.

        Raises:
            ConfigError: The time cannot be told.
        """
        if not self.schedule.timed:
            return
        if self.clock.seconds is None:
            raise ConfigError(
                "participation: who is there depends on the simulated time, which cannot be told "
                "(the run's log says why); use participation=uniform, bernoulli or full"
            )
        busy = self.pace is not None and len(self.pace.in_flight) > 0
        if isinstance(self.strategy, AsynchronousStrategy):
            busy = self.strategy.anybody_busy
        self.clock.seconds = begin(self.schedule, server_round, self.clock.seconds, wait=not busy)
        if isinstance(self.strategy, AsynchronousStrategy):
            self.strategy.wait_until(self.clock.seconds)

    def _pass(
        self, train: AdmittedReplies, footprint: Mapping[str, Mapping[str, Sequence[float]]]
    ) -> None:
        """Let a round's simulated time pass."""
        if isinstance(self.strategy, AsynchronousStrategy):
            self.clock.seconds = self.strategy.simulated_seconds
            return
        if train.gate is not None and self.clock.seconds is not None:
            self.clock.seconds = train.gate.closes
            footprint = {k: columns for k, columns in footprint.items() if k != "train"}
        self.clock.advance(footprint.values())

    def train(
        self, server_round: int, params: Params, *, score: bool = False
    ) -> tuple[Params, AdmittedReplies]:
        """Run one training exchange; return the next model and the replies it was made of.

        If `score`, clients score the model that they receive on their held-out samples, too.
        """
        arrays = self._record(params)
        sent: Sequence[Message] = []
        if self.pace is not None and isinstance(self.strategy, FedsimStrategy):
            self.strategy.away = self.pace.in_flight.clients
        with self._participants(server_round, "train") as someone:
            if someone:
                told = ConfigRecord(dict(self.protection.told()))
                if score:
                    told[EVALUATE] = True
                asked = self.strategy.configure_train(server_round, arrays, told, self.grid)
                sent = _sequence(asked)
        if self.charge is not None:
            self._epsilon = self.charge(server_round, self._asked(sent))
        replies = self._exchange(sent, params)
        if self.pace is not None:
            replies.gate = self.pace.gate(server_round, params, self.clock.seconds)
        if self.observer is not None:
            self.observer.begin(replies.clients)
            replies.observe = self.observer.see
        drawn = self._private(server_round, params, replies)
        if drawn is None:
            if not someone:
                return params, replies
            drawn = self._draw(replies)
        elif not someone:
            key = seeds.sequence(self.seed, server_round, seeds.SERVER, "flower-sampling")
            third_party.show_model(self.strategy, server_round, arrays, self.grid, key)
        with self._failures(server_round, replies):
            new_arrays, _ = self.strategy.aggregate_train(server_round, drawn)
            if new_arrays is None or not len(new_arrays):
                return params, replies
            return self._checked(server_round, params, new_arrays), replies

    def _evaluate(self, server_round: int, params: Params) -> AdmittedReplies:
        arrays = self._record(params)
        with self._participants(server_round, "evaluate") as someone:
            if not someone:
                return AdmittedReplies.nothing()
            sent = self.strategy.configure_evaluate(server_round, arrays, ConfigRecord(), self.grid)
        replies = self._exchange(_sequence(sent), None)
        drawn = self._draw(replies)
        with self._failures(server_round, replies):
            self.strategy.aggregate_evaluate(server_round, drawn)
        return replies

    def _asked(self, sent: Sequence[Message]) -> np.ndarray:
        """Return the client indices that messages are for, sorted."""
        if isinstance(sent, Instructions):
            return sent.client_index
        index = getattr(self.grid, "client_index", None)
        nodes = [message.metadata.dst_node_id for message in sent]
        return np.array(sorted(index(n) for n in nodes) if index else range(len(nodes)), np.int64)

    def _private(
        self, server_round: int, params: Params, replies: AdmittedReplies
    ) -> Iterable[Message] | None:
        """Return the one reply that a strategy sees where a mechanism aggregates, or None."""
        private = self.protection.receive(server_round, params, replies)
        if private is None or isinstance(self.strategy, FedsimStrategy):
            return private
        return list(private)

    def _exchange(self, sent: Sequence[Message], expected: Params | None) -> AdmittedReplies:
        like: Mapping[str, Tensor] | None = expected
        extra: Mapping[str, Tensor] = {}
        if expected is not None:
            extra = self.protection.sealed_like()
            if isinstance(self.strategy, FedsimStrategy):
                extra = {**self.strategy.expected_upload, **extra}
                like = self.strategy.expected_arrays
        received = self.grid.send_and_receive(sent, timeout=self.admission.timeout_s)
        if self.tamper is not None and expected is not None:
            received = self.tamper(received, expected)
        client_index = getattr(self.grid, "client_index", None)
        compressor = None if expected is None else self.compressor
        replies = self.admission.admit(sent, received, like, extra, client_index, compressor)
        if self.meter is not None:
            replies.weigh = content_bytes
            if expected is not None and isinstance(self.strategy, AsynchronousStrategy):
                replies.busy = self.meter.busy
        return replies

    def _draw(self, replies: AdmittedReplies) -> Iterable[Message]:
        """Return what the strategy gets: ours draw their replies lazily, others expect a list."""
        return replies if isinstance(self.strategy, FedsimStrategy) else list(replies)

    def _participants(self, server_round: int, kind: str) -> AbstractContextManager[bool]:
        if isinstance(self.strategy, FedsimStrategy):
            return nullcontext(True)  # it asks the schedule itself
        key = seeds.sequence(self.seed, server_round, seeds.SERVER, "flower-sampling")
        clients, patience = self.schedule.select(server_round), self.admission.timeout_s
        return third_party.participants(self.strategy, kind, self.grid, clients, key, patience)

    def _failures(
        self, server_round: int, replies: AdmittedReplies
    ) -> AbstractContextManager[None]:
        if isinstance(self.strategy, FedsimStrategy):
            return nullcontext()  # what fails there is our bug, and deserves its traceback
        return third_party.failures(self.strategy, server_round, replies)

    def _record(self, params: Params) -> ArrayRecord:
        return to_record(params, zero_copy=bool(getattr(self.grid, "zero_copy", False)))

    def _checked(self, server_round: int, params: Params, arrays: ArrayRecord) -> Params:
        """Return a strategy's result in the model's dtypes; some of Flower's change them.

        Raises:
            StrategyError: It is no such model, or not a finite one.
        """
        who = f"{type(self.strategy).__name__} (round {server_round})"
        new, result = to_tensors(arrays), {}
        for name, like in params.items():
            if name not in new or new[name].shape != like.shape:
                raise third_party.StrategyError(
                    f"{who} returned no array '{name}' of {list(like.shape)}"
                )
            if name in self.frozen:
                result[name] = like
                continue
            tensor = new[name] if like.is_floating_point() else new[name].round()
            result[name] = tensor.to(like.device, like.dtype)
            if not is_finite(result[name]):
                raise third_party.StrategyError(
                    f"{who} made a model that is not finite (array '{name}') out of finite "
                    "replies; lower the learning rates (strategy, client), or use a strategy that "
                    "stands outliers, e.g. strategy=fedmedian"
                )
        return aligned(result)


def _sequence(messages: Iterable[Message]) -> Sequence[Message]:
    return messages if isinstance(messages, Sequence) else list(messages)
