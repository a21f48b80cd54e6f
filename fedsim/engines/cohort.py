"""The vectorised engine: groups a round's messages by what they ask, trains K clients at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, cast

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.client.app import make_client_app
from fedsim.client.chain import saved_bytes
from fedsim.client.cohort import CohortTrainer, evaluate_clients, evaluate_personal
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import PrivateStep, RuleStep, VmapStep
from fedsim.client.whole import score_whole
from fedsim.engines.base import EnginePart
from fedsim.engines.flwr_compat import FIRST_NODE_ID, client_error
from fedsim.engines.in_process import InProcessGrid, MessageReplies
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.layers.probe import probe_independence, probe_samples
from fedsim.memory import output_bytes
from fedsim.parts import Range
from fedsim.records import (
    ARRAYS,
    CONFIG,
    EVALUATE,
    RECEIVED,
    Chunk,
    Instructions,
    Params,
    PayloadOf,
    Replies,
    Scalar,
    reply_content,
    stack,
    to_tensors,
)

log = logging.getLogger(__name__)

WITHOUT_RULES = {
    "loss": "loss",
    "gradient": "gradient",
    "evaluated": "evaluation",
    "run": "local work",
    "score": "evaluation",
}
"""Levels of a client half that call the model themselves -> what a half that has them replaces."""

ANSWERS = 256
"""How many clients answer a question at once."""

PlanName = Literal["auto", "rules", "vmap", "sequential"]


@dataclass(frozen=True, kw_only=True)
class Cohort(EnginePart):
    """Vectorised engine.

    Attributes:
        chunk: How many clients train at once; null lets the engine choose (on a CPU, so that their
            weights and activations stay in cache; on a GPU, as fit a quarter of its memory).
        plan: `rules`: layer rules. `vmap`: `torch.func`. `sequential`: the reference, one by one.
            `auto`: the first of these that the model and the client half allow; said once.
    """

    chunk: Annotated[int, Range(ge=1)] | None = None
    plan: PlanName = "auto"

    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> CohortGrid:
        return CohortGrid(runtime, chunk=self.chunk, plan=self.plan)


class CohortGrid(InProcessGrid):
    """Runs K clients at once; what cannot be stacked falls back to the sequential reference."""

    def __init__(
        self, runtime: ClientRuntime, *, chunk: int | None = None, plan: PlanName = "auto"
    ) -> None:
        super().__init__(make_client_app(lambda _: runtime, zero_copy=True), runtime)
        self.trainer, self.plan, self.why = choose_trainer(runtime, plan)
        if self.trainer is None:
            runtime.estimator.check_alone(runtime)
        stacked = None if self.trainer is None else self.trainer.stacked
        automatic = 1 if self.trainer is None else default_chunk(runtime, stacked)
        self.chunk = chunk or automatic
        if self.why:
            log.warning("cohort engine runs '%s': %s", self.plan, self.why)

    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        groups = [messages] if isinstance(messages, Instructions) else group_messages(messages)
        if self.trainer is None or groups is None:
            return MessageReplies(self, messages)
        return CohortReplies(self.run_chunks, groups)

    def run_chunks(self, group: Instructions) -> Iterator[Chunk]:
        """Yield the replies to one group of instructions, chunk by chunk, of about equal size."""
        params = self.runtime.received(to_tensors(group.arrays))
        for part in even_parts(len(group), self.chunk):
            chunk = self.answer(
                group.message_type,
                group.client_index[part],
                group.server_round,
                params,
                group.client_arrays(part),
                group.config,
            )
            trained = group.message_type == "train"
            yield self.compressed(chunk, params, group.server_round) if trained else chunk

    def answer(
        self,
        message_type: str,
        clients: np.ndarray,
        server_round: int,
        params: Params,
        own: Params | PayloadOf,
        told: Mapping[str, Scalar],
    ) -> Chunk:
        """Return the replies of some clients to one kind of message, all at once.

        Args:
            message_type: `"train"` or `"evaluate"`.
            clients: Who; `[K]`.
            server_round: 1, 2, ...
            params: The model that they are sent.
            own: What each is sent besides, `[K, ...]`, or the function that says.
            told: What all are told besides; among it, whether those who train score the model as
                they receive it, too.
        """
        if self.trainer is None:
            raise RuntimeError(f"the plan '{self.plan}' has no chunks")
        if message_type == "evaluate":
            return self._scores(self.trainer, clients, server_round, params, own)
        if not told.get(EVALUATE):
            return self.trainer.train(clients, server_round, params, own, told)
        scored = self._scores(self.trainer, clients, server_round, params, own)
        chunk = self.trainer.train(clients, server_round, params, own, told)
        order = np.argsort(clients)[np.searchsorted(np.sort(clients), chunk.client_index)]
        columns = {RECEIVED + name: column[order] for name, column in scored.metrics.items()}
        return replace(chunk, metrics={**chunk.metrics, **columns})

    def _scores(
        self,
        trainer: CohortTrainer,
        clients: np.ndarray,
        server_round: int,
        params: Params,
        own: Params | PayloadOf,
    ) -> Chunk:
        if self.runtime.half.overrides("score"):
            own = own(clients) if callable(own) else own
            columns = score_whole(
                self.runtime,
                clients=clients,
                server_round=server_round,
                params=params,
                client_arrays=own,
            )
            return Chunk(client_index=clients, arrays={}, metrics=columns)
        if not self.runtime.half.personal:
            return evaluate_clients(self.runtime, clients, params)
        own = own(clients) if callable(own) else own
        return evaluate_personal(trainer, clients, server_round, params, own)


class CohortReplies(Replies):
    """Replies computed chunk by chunk, as they are drawn."""

    stacked = True

    def __init__(
        self,
        run_chunks: Callable[[Instructions], Iterator[Chunk]],
        groups: Sequence[Instructions],
    ) -> None:
        self.run_chunks = run_chunks
        self.groups = groups

    def chunks(self) -> Iterator[Chunk]:
        for group in self.groups:
            yield from self.run_chunks(group)

    def __iter__(self) -> Iterator[Message]:
        for group in self.groups:
            everyone = stack(CohortReplies(self.run_chunks, [group]))
            if everyone is None:
                continue
            row_of = {client: row for row, client in enumerate(everyone.client_index.tolist())}
            for client, message in zip(group.client_index.tolist(), group, strict=True):
                if client in everyone.errors:
                    yield client_error(message, everyone.errors[client])
                elif client in row_of:
                    yield _reply(everyone, row_of[client], message)


def _reply(everyone: Chunk, row: int, message: Message) -> Message:
    values = {k: float(column[row]) for k, column in everyone.metrics.items()}
    arrays = {name: rows[row] for name, rows in everyone.arrays.items()}
    extra = {name: rows[row] for name, rows in everyone.client_arrays.items()}
    return Message(reply_content(arrays or None, values, extra, zero_copy=True), reply_to=message)


def group_messages(messages: Sequence[Message]) -> list[Instructions] | None:
    """Return messages of any Flower strategy as groups that ask the same of their clients.

    None where a message carries what we do not know how to stack.
    """
    groups: dict[tuple[object, ...], list[Message]] = {}
    for message in messages:
        content, kind = message.content, message.metadata.message_type
        if set(content) != {ARRAYS, CONFIG} or kind not in ("train", "evaluate"):
            return None
        config = content.config_records[CONFIG]
        if "server-round" not in config:
            return None
        settings = sorted((k, v) for k, v in config.items() if k != "client-index")
        key = (kind, id(content.array_records[ARRAYS]), repr(settings))
        groups.setdefault(key, []).append(message)
    return [_instructions(group) for group in groups.values()]


def _instructions(group: list[Message]) -> Instructions:
    """Return messages that ask the same as one `Instructions`, in client order."""
    first = group[0].content
    nodes = np.array(sorted(message.metadata.dst_node_id for message in group), np.int64)
    config = cast(Mapping[str, Scalar], first.config_records[CONFIG])
    return Instructions(
        message_type=group[0].metadata.message_type,
        server_round=int(config["server-round"]),
        client_index=nodes - FIRST_NODE_ID,
        node_ids=nodes,
        arrays=first.array_records[ARRAYS],
        config=config,
        zero_copy=True,
    )


def even_parts(count: int, at_most: int) -> list[slice]:
    """Return slices that cut `count` into parts of about equal size."""
    size = math.ceil(count / math.ceil(count / at_most)) if count else 1
    return [slice(start, start + size) for start in range(0, count, size)]


def choose_trainer(
    runtime: ClientRuntime, plan: PlanName
) -> tuple[CohortTrainer | None, PlanName, str]:
    """Return (trainer, the plan it follows, why not a faster one); no trainer for `sequential`."""
    if plan == "sequential":
        return None, "sequential", ""
    if runtime.half.queried:
        return CohortTrainer(runtime, VmapStep, _no_models), "vmap", ""
    why = ""
    if plan in ("auto", "rules"):
        try:
            return _rules_trainer(runtime), "rules", ""
        except NoRuleError as reason:
            why = str(reason)
    if not runtime.estimator.plain:
        return None, "sequential", why or "per-sample gradients are not made by torch.func"
    try:
        return _vmap_trainer(runtime), "vmap", why
    except (RuntimeError, NotImplementedError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        return None, "sequential", f"{why}; torch.func: {first_line}".removeprefix("; ")


def _no_models(weights: Params, x: Tensor) -> Tensor:
    raise RuntimeError("clients that answer questions score no models")


def _rules_trainer(runtime: ClientRuntime) -> CohortTrainer:
    for level, what in WITHOUT_RULES.items():
        if runtime.half.overrides(level):
            raise NoRuleError(f"{type(runtime.half).__name__} replaces the whole {what}")
    step: type[RuleStep] = RuleStep
    if not runtime.estimator.plain:
        like = {n: t for n, t in runtime.initial_params().items() if n in runtime.trainable}
        if runtime.estimator.privatiser(like, np.arange(1), 0) is None:
            raise NoRuleError(f"{type(runtime.estimator).__name__} has no stacked form")
        step = PrivateStep
    stacked = StackedModel(runtime.model)
    probe_independence(stacked, runtime.initial_params(), runtime.dataset.train_x[:2])
    if step is PrivateStep:
        probe_samples(stacked, runtime.initial_params(), runtime.dataset.train_x[:3])

    def models(weights: Params, x: Tensor) -> Tensor:
        stacked.tape.weights = weights
        stacked.module.eval()
        outputs = stacked.forward(x.flatten(0, 1), len(x))
        return outputs.view(*x.shape[:2], *outputs.shape[1:])

    return CohortTrainer(runtime, partial(step, stacked), models, stacked)


def _vmap_trainer(runtime: ClientRuntime) -> CohortTrainer:
    """Make a `torch.func` trainer, after the gradients of two stacked clients have worked.

    Raises:
        NotImplementedError: The model keeps state that `torch.func` would lose.
    """
    if runtime.drops:
        raise NotImplementedError("dropout draws its masks outside of it")
    params, x = runtime.initial_params(), runtime.dataset.train_x[:2]
    runtime.model.train()
    runtime.apply(params, x)
    for name, tensor in runtime.initial_params().items():
        if not torch.equal(params[name], tensor):
            raise NotImplementedError(f"training changes buffer '{name}' beside the parameters")

    def total(trained: Params, rest: Params, x: Tensor) -> Tensor:
        return runtime.apply({**rest, **trained}, x).sum()

    pairs = {name: torch.stack([t, t]) for name, t in params.items()}
    trained = {name: pairs.pop(name) for name in runtime.trainable}
    torch.vmap(torch.func.grad(total))(trained, pairs, torch.stack([x, x]))

    def models(weights: Params, x: Tensor) -> Tensor:
        runtime.model.eval()
        outputs: Tensor = torch.vmap(runtime.apply)(weights, x)
        return outputs

    return CohortTrainer(runtime, VmapStep, models)


def default_chunk(runtime: ClientRuntime, stacked: StackedModel | None = None) -> int:
    """Return how many clients to train at once.

    On a CPU, as many as keep their weights and activations in the cache (16 MiB of them), at least
    4 and at most 64: small models cost dispatch, which clients share; large ones memory traffic.
    Where a stacked model takes plain steps, weights may be kept as factors, which are smaller.
    """
    if runtime.half.queried:
        return ANSWERS
    size, device = bytes_per_client(runtime), runtime.dataset.train_x.device
    if stacked is not None:
        size = max(1, size - saved_bytes(stacked, runtime))
    if device.type != "cuda":
        return max(4, min(64, 2**24 // size))
    # Not what is free just now: float sums depend on the chunk, and a resumed run must sum alike.
    total: int = torch.cuda.get_device_properties(device).total_memory
    return max(10, min(4096, total // 4 // size))


@torch.no_grad()
def bytes_per_client(runtime: ClientRuntime) -> int:
    """Return the bytes of one client's weights, and of its layers' outputs on one batch."""
    params, x = runtime.initial_params(), runtime.dataset.train_x
    if runtime.half.queried:  # no model: what is asked for has its size
        return max(1, sum(t.nbytes for t in params.values()))
    each = output_bytes(runtime.model, lambda: runtime.apply(params, x[:1]))
    batch = max(1, min(runtime.work.batch_size, len(x) // runtime.partition.num_clients))
    return max(1, sum(t.nbytes for t in params.values()) + batch * each)
