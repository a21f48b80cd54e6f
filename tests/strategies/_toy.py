"""Toy federations: quadratic clients, grids that answer by a function, hand-made replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedsim.admission import Admission
from fedsim.asynchronous import AsynchronousStrategy
from fedsim.client import ClientContext
from fedsim.engines.base import LocalGrid
from fedsim.engines.flwr_compat import client_error, make_run
from fedsim.models.structure import Layer
from fedsim.participation.base import Schedule
from fedsim.records import (
    CLIENT_ARRAYS,
    NUM_EXAMPLES,
    Chunk,
    Params,
    Replies,
    to_record,
    to_tensors,
)
from fedsim.rounds import Evaluation, RoundLoop, RoundReport
from fedsim.strategy import Federation, FedsimStrategy, Round
from tests.helpers import graph_for

S = TypeVar("S", bound=Strategy)
Answer = Callable[[Message], list[Message]]

LAYERS = (
    Layer(path="x", kind=nn.Linear, parameters=("x",)),
    Layer(path="w", kind=nn.BatchNorm1d, parameters=("w",), buffers=("seen",)),
)
"""Of the toy models, so that strategies have layers to keep for the clients."""

make_run()  # Flower makes no message before its task identity is set


def model(*values: float, dtype: torch.dtype = torch.float64) -> Params:
    return {"x": torch.tensor(values, dtype=dtype)}


class Masks(Schedule):
    """Row r - 1 of `masks`, bool `[T, N]`, says who takes part in round r."""

    def __init__(self, masks: np.ndarray, rates: np.ndarray | None = None) -> None:
        self.masks = np.asarray(masks, bool)
        self._rates = self.masks.mean(0) if rates is None else np.asarray(rates)

    def select(self, server_round: int) -> np.ndarray:
        return np.flatnonzero(self.masks[server_round - 1])

    def rates(self) -> np.ndarray:
        return self._rates


def everyone(num_clients: int, rounds: int = 100) -> Masks:
    return Masks(np.ones((rounds, num_clients)))


def federate(strategy: S, schedule: Masks, evaluate: str = "none") -> S:
    """Tell one of our strategies about the federation; Flower's own need not know."""
    if isinstance(strategy, FedsimStrategy):
        strategy.federation = Federation(
            num_clients=schedule.masks.shape[1],
            seed=0,
            schedule=schedule,
            evaluate=evaluate,  # type: ignore[arg-type]
            layers=LAYERS,
            lr_at=lambda server_round: 0.5 / server_round,
            graph=graph_for(strategy, schedule.masks.shape[1]),
            latencies=lambda: 1 + np.arange(schedule.masks.shape[1]) / 8,
        )
    return strategy


class Stacked(Replies):
    """Replies as one stacked chunk, as the cohort engine gives them."""

    stacked = True

    def __init__(self, *chunks: Chunk) -> None:
        self._chunks = chunks

    def chunks(self) -> Iterator[Chunk]:
        yield from self._chunks

    def __iter__(self) -> Iterator[Message]:
        raise AssertionError("nobody should build messages of stacked replies")


def chunk(clients: Sequence[int] | np.ndarray, rows: Tensor, examples: object = 1.0) -> Chunk:
    count = np.broadcast_to(np.asarray(examples, np.float64), len(clients)).copy()
    index = np.asarray(clients, np.int64)
    return Chunk(client_index=index, arrays={"x": rows}, metrics={NUM_EXAMPLES: count})


class Nodes:
    """The least that a strategy of ours needs of a grid in this process."""

    zero_copy = True

    def node_ids(self, client_index: np.ndarray) -> np.ndarray:
        return client_index + 100


def drive(
    strategy: FedsimStrategy, masks: np.ndarray, centres: np.ndarray, lr: float, start: float = 0.0
) -> np.ndarray:
    """Run clients that take one step on (x - b_k)^2 / 2; return x after each round, `[T]`.

    Through the strategy's Flower methods and admission, on stacked replies.
    """
    strategy = federate(strategy, Masks(masks))
    b_N1 = torch.as_tensor(centres, dtype=torch.float64)[:, None]
    arrays, grid, rules, trace = to_record(model(start), zero_copy=True), Nodes(), Admission(), []
    for server_round in range(1, len(masks) + 1):
        sent = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)  # type: ignore[arg-type]
        params, who = to_tensors(arrays), sent.client_index
        rows = params["x"] + lr * (b_N1[who] - params["x"])
        replies = rules.admit(sent, Stacked(chunk(who, rows)), params)
        new, _ = strategy.aggregate_train(server_round, replies)
        assert new is not None
        arrays = new
        trace.append(float(to_tensors(arrays)["x"]))
    return np.array(trace)


def drive_fast(
    strategy: FedsimStrategy, masks: np.ndarray, centres: np.ndarray, lr: float, start: float = 0.0
) -> np.ndarray:
    """Do as `drive`, for long runs: `aggregate` alone, which a test holds to be the same."""
    strategy = federate(strategy, Masks(masks))
    b_N1 = torch.as_tensor(centres, dtype=torch.float64)[:, None]
    params, trace = model(start), []
    ones = np.ones(masks.shape[1])
    for server_round, mask in enumerate(np.asarray(masks, bool), start=1):
        who = np.flatnonzero(mask)
        context = Round(server_round=server_round, num_clients=len(mask), asked=who, params=params)
        rows = params["x"] + lr * (b_N1[who] - params["x"])
        replies = Chunk(
            client_index=who, arrays={"x": rows}, metrics={NUM_EXAMPLES: ones[: len(who)]}
        )
        params = strategy.aggregate(context, Stacked(*[replies] * bool(len(who))))
        trace.append(params["x"].item())
    return np.array(trace)


class ToyGrid(LocalGrid):
    """Virtual clients that answer by a function from instruction to replies, in any order."""

    def __init__(self, num_clients: int, answer: Answer, *, zero_copy: bool = False) -> None:
        partition = SimpleNamespace(num_clients=num_clients)
        super().__init__(SimpleNamespace(partition=partition))  # type: ignore[arg-type]
        self.answer = answer
        self.zero_copy = zero_copy
        self.strategy: Strategy | None = None

    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        return [
            with_upload(self.strategy, message, reply)
            for message in messages
            for reply in self.answer(message)
        ]


def with_upload(strategy: Strategy | None, message: Message, reply: Message) -> Message:
    """Add to a reply what the strategy's client half sends beside the model."""
    if not isinstance(strategy, FedsimStrategy) or not strategy.client_half.overrides("upload"):
        return reply
    if not reply.has_content() or CLIENT_ARRAYS in reply.content:
        return reply
    sent = message.content.array_records
    own = to_tensors(sent.get(CLIENT_ARRAYS, {}))
    upload = upload_of(strategy, to_tensors(sent["arrays"]), own)
    reply.content[CLIENT_ARRAYS] = to_record(upload, zero_copy=False)
    return reply


def upload_of(strategy: FedsimStrategy, start: Params, own: Params) -> Params:
    """Return what one client's half sends beside the model, of one step of 0.5 on |x|^2 / 4."""
    context = ClientContext(
        task="regression",
        model=lambda params, x: x,
        start=start,
        arrays=own,
        server_round=1,
        lr=0.5,
        steps=1,
        gradient={name: x / 2 for name, x in start.items() if x.is_floating_point()},
    )
    return strategy.client_half.upload(start, context)


def model_record(message: Message) -> ArrayRecord:
    """Return the model that a client was sent: the one for all, or one of its own."""
    records = message.content.array_records
    if len(records["arrays"]):
        return records["arrays"]
    own = records[CLIENT_ARRAYS]  # what is no part of the model has a name with a prefix
    return ArrayRecord({name: array for name, array in own.items() if "/" not in name})


def reply(
    message: Message,
    arrays: ArrayRecord | Params | None = None,
    metrics: MetricRecord | dict[str, object] | None = None,
    *,
    examples: object = 1,
) -> Message:
    """Answer a message; by default, with the model as it came."""
    if arrays is None:
        arrays = model_record(message)
    if not isinstance(arrays, ArrayRecord):
        arrays = to_record(arrays, zero_copy=False)
    if not isinstance(metrics, MetricRecord):
        loss = {"train-loss": 1.0}
        metrics = MetricRecord({NUM_EXAMPLES: examples, **loss, **(metrics or {})})  # type: ignore[dict-item]
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def quadratic(message: Message, centre: float, lr: float = 0.5, examples: object = 1) -> Message:
    """Answer with one step on (x - centre)^2 / 2."""
    params = to_tensors(model_record(message))
    stepped = {
        name: x + lr * (centre - x) if x.is_floating_point() else x for name, x in params.items()
    }
    metrics: dict[str, object] = {}
    if message.metadata.message_type == "evaluate":
        metrics = {"loss": float((params["x"] - centre).square().mean())}
    return reply(message, stepped, metrics, examples=examples)


def failing(message: Message, reason: str = "out of memory") -> Message:
    return client_error(message, reason)


class ToyMeter:
    """Client k is busy for 1 + k / 8 seconds."""

    def busy(self, replies: object, clients: np.ndarray) -> np.ndarray:
        seconds: np.ndarray = 1 + clients / 8
        return seconds

    def footprint(self, exchange: str, replies: object) -> dict[str, list[float]]:
        return {}


def loop(
    strategy: Strategy,
    grid: ToyGrid,
    schedule: Masks,
    *,
    rounds: int | None = None,
    admission: Admission | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
) -> RoundLoop:
    clients = evaluation is not None and evaluation.clients
    grid.strategy = strategy
    return RoundLoop(
        strategy=federate(strategy, schedule, "all" if clients else "none"),
        grid=grid,
        schedule=schedule,
        admission=admission or Admission(),
        evaluation=evaluation or Evaluation(central=None, clients=False, every=1),
        seed=seed,
        last_round=len(schedule.masks) if rounds is None else rounds,
        meter=ToyMeter() if isinstance(strategy, AsynchronousStrategy) else None,  # type: ignore[arg-type]
    )


def finish(run: RoundLoop, params: Params, done: int = 0) -> tuple[Params, list[RoundReport]]:
    """Run a loop to its end."""
    reports, last = [], params
    for last, report in run.run(params, done):  # noqa: B007
        reports.append(report)
    return last, reports


def equal(a: Params, b: Params) -> bool:
    """Bit-equal, types included."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )
