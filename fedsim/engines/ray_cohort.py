"""The cohort engine in several processes, on one machine or a cluster: actors of Ray's.

Each actor builds the client side of the run from its recipe and trains chunks of a round. The model
goes into Ray's object store once per exchange; chunks come back as arrays, in the order of their
clients, a few at a time. Which actor trained a chunk, and how many there are, leaves no trace in
the result: chunks are cut by the round alone, and float sums follow their order.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.client.app import make_client_app
from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.engines import ray_start, recipe
from fedsim.engines.base import EnginePart, reason
from fedsim.engines.cohort import (
    CohortGrid,
    CohortReplies,
    PlanName,
    even_parts,
    group_messages,
)
from fedsim.engines.in_process import InProcessGrid, MessageReplies
from fedsim.errors import ConfigError, FedsimError
from fedsim.parts import Range
from fedsim.records import (
    NUM_EXAMPLES,
    WIRE_CHUNK,
    Chunk,
    Instructions,
    Params,
    Scalar,
    stack_replies,
    to_tensors,
)

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

PARTS = 8
"""A round is cut into at least so many chunks, where nothing else is asked for: work for so many
actors. A constant, since float sums depend on the chunks, and must not on the machine."""

OUTSTANDING = 2
"""Chunks per actor that are trained, or wait to be drawn: none idles, none piles up."""

RESTARTS = 3
"""How often Ray restarts an actor that dies, and trains its chunk again."""


@dataclass(frozen=True, kw_only=True)
class RayCohort(EnginePart):
    """Vectorised engine on Ray's actors.

    Attributes:
        actors: How many; null for as many as fit.
        num_cpus, num_gpus: What one actor asks for. With `num_gpus` 0, Ray hides all GPUs.
        chunk: How many clients an actor trains at once; null for what suits the cohort engine, and
            at most an eighth of the round. The last bits of a model depend on it: set to the same
            number on both, the cohort engine ends with the same bits.
        plan: As in the cohort engine.
        address: An existing Ray cluster (`host:port` or `auto`); null starts Ray here.
        start_s: Seconds that the actors may take to be ready, data and model built.
    """

    actors: Annotated[int, Range(ge=1)] | None = None
    num_cpus: Annotated[float, Range(gt=0)] = 1.0
    num_gpus: Annotated[float, Range(ge=0)] = 0.0
    chunk: Annotated[int, Range(ge=1)] | None = None
    plan: PlanName = "auto"
    address: str | None = None
    start_s: Annotated[float, Range(gt=0)] = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ray_start.check_gpus(self.num_gpus)

    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> RayCohortGrid:
        device = ray_start.check_run("ray_cohort", runtime, flower_grid)
        ray_start.check_device(device, self.num_gpus)
        cpus = None if self.actors is None else self.actors * self.num_cpus
        ray = ray_start.connect("ray_cohort", self.address, cpus=cpus)
        try:
            fit = ray_start.capacity(ray.module, self.num_cpus, self.num_gpus)
            if (self.actors or 1) > fit:
                raise ConfigError(
                    f"engine.actors: {self.actors} of num_cpus={self.num_cpus:g}, "
                    f"num_gpus={self.num_gpus:g}, but only {fit} fit; lower engine.actors"
                )
            team = Team(ray, self.actors or fit, self, runtime.recipe)
            return RayCohortGrid(runtime, team, self.chunk)
        except BaseException:  # Ctrl-C, too
            ray.stop()
            raise


# --- what runs in an actor ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What some clients are asked; the model comes apart from it."""

    message_type: str
    server_round: int
    clients: np.ndarray
    client_arrays: Arrays
    told: Mapping[str, Scalar]
    memory: Arrays = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chunk as plain arrays."""

    client_index: np.ndarray
    arrays: Arrays = field(default_factory=dict)
    client_arrays: Arrays = field(default_factory=dict)
    metrics: Arrays = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Worker:
    """An actor: the client side of a run, and the cohort engine over it."""

    def __init__(self, text: str, plan: PlanName) -> None:
        self.text = text  # what may fail is left to a call, whose error comes back as it is
        self.plan = plan

    @cached_property
    def _grid(self) -> CohortGrid:
        return CohortGrid(recipe.runtime(self.text), plan=self.plan)

    def about(self) -> tuple[PlanName, str, int]:
        """Return the plan, why it is not a faster one, and the number of clients at once."""
        grid = self._grid
        return grid.plan, grid.why, WIRE_CHUNK if grid.trainer is None else grid.chunk

    def run(self, ask: Ask, model: Arrays) -> Answer:
        """Train, or evaluate, some clients."""
        runtime = self._grid.runtime
        params, own = runtime.received(_tensors(model)), _tensors(ask.client_arrays)
        try:
            chunk = self._together(ask, params, own)
        except Exception as error:  # somebody's failure is his own: see who it is
            log.warning("a chunk is run one by one: %s: %s", type(error).__name__, error)
            chunk = _one_by_one(runtime, ask, params, own)
        memory: Params = {}
        if runtime.compressor is not None and ask.message_type == "train":
            row_of = {client: row for row, client in enumerate(ask.clients.tolist())}
            rows = [row_of[client] for client in chunk.client_index.tolist()]
            memory = {name: tensor[rows] for name, tensor in _tensors(ask.memory).items()}
            chunk, memory = runtime.compressor.compress(chunk, params, ask.server_round, memory)
        return Answer(
            client_index=chunk.client_index,
            arrays=_arrays(chunk.arrays),
            client_arrays=_arrays(chunk.client_arrays),
            metrics=chunk.metrics,
            memory=_arrays(memory),
            errors=chunk.errors,
        )

    def _together(self, ask: Ask, params: Params, own: Params) -> Chunk:
        grid = self._grid
        if grid.trainer is None:
            return _one_by_one(grid.runtime, ask, params, own)
        return grid.answer(ask.message_type, ask.clients, ask.server_round, params, own, ask.told)


def _one_by_one(runtime: ClientRuntime, ask: Ask, params: Params, own: Params) -> Chunk:
    good: list[tuple[int, Params, Params, Mapping[str, float]]] = []
    errors = {}
    device = runtime.dataset.train_x.device
    for row, client in enumerate(ask.clients.tolist()):
        try:
            given = {
                "client": client,
                "server_round": ask.server_round,
                "params": params,
                "client_arrays": {name: rows[row].to(device) for name, rows in own.items()},
            }
            if ask.message_type == "evaluate":
                scores = evaluate_client(runtime, **given)
                if scores[NUM_EXAMPLES]:  # others have nothing to say
                    good.append((client, {}, {}, scores))
                continue
            result = train_client(runtime, **given, told=ask.told)
        except Exception as error:  # data, as on every engine
            errors[client] = reason(error)
        else:
            good.append((client, result.params, result.upload, result.metrics))
    chunk = stack_replies(good) if good else Chunk(client_index=np.arange(0), arrays={})
    chunk.errors = errors
    return chunk


def _arrays(params: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in params.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> Params:
    # Copied: what comes out of the object store may not be written to, and goes when Ray likes.
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


# --- what runs beside the round loop -----------------------------------------------------------


class Team:
    """The actors of a run; hands work to whoever has least of it.

    Raises:
        ConfigError: They are not ready in time, or the run cannot be built where they are.
    """

    def __init__(self, ray: ray_start.Ray, count: int, engine: RayCohort, text: str) -> None:
        self.ray = ray
        remote = ray.module.remote(Worker).options(
            num_cpus=engine.num_cpus,
            num_gpus=engine.num_gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        self._actors = [remote.remote(text, engine.plan) for _ in range(count)]
        self._unfinished: list[list[Any]] = [[] for _ in self._actors]
        deadline = time.monotonic() + engine.start_s
        asked = [actor.about.remote() for actor in self._actors]
        try:
            told = [self.result(answer, deadline) for answer in asked]
        except TimeoutError:
            raise ConfigError(
                f"engine=ray_cohort: {count} actors are not ready within {engine.start_s:g} s; is "
                "the cluster busy with other work? Lower engine.actors or raise engine.start_s"
            ) from None
        self.plan, self.why, self.chunk = told[0]
        if len(set(told)) > 1:
            log.warning("the actors run on different hardware (%s): results depend on which of "
                        "them trains whom, in the last digits", told)  # fmt: skip

    def __len__(self) -> int:
        return len(self._actors)

    def put(self, model: Arrays) -> Any:
        """Put a model where all actors can read it."""
        return self.ray.module.put(model)

    def submit(self, ask: Ask, model: Any) -> Any:
        """Have the least busy actor do some work; return what `result` takes."""
        for unfinished in self._unfinished:
            if unfinished:
                _, unfinished[:] = self.ray.module.wait(
                    unfinished, num_returns=len(unfinished), timeout=0
                )
        least = min(range(len(self)), key=lambda i: len(self._unfinished[i]))
        answer = self._actors[least].run.remote(ask, model)
        self._unfinished[least].append(answer)
        return answer

    def result(self, answer: Any, deadline: float) -> Any:
        """Wait for an answer.

        Raises:
            TimeoutError: It is not there in time.
            FedsimError: It will never be.
        """
        exceptions = self.ray.module.exceptions
        try:
            return self.ray.module.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except exceptions.GetTimeoutError as error:
            raise TimeoutError from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, FedsimError):
                raise error.cause from None
            raise ray_start.EngineDiedError(
                f"engine=ray_cohort: an actor failed: {error.cause or error}"
            ) from error
        except exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise ray_start.EngineDiedError(
                f"engine=ray_cohort: an actor has died and was restarted {RESTARTS} times in vain "
                f"({first}); if it ran out of memory, lower engine.chunk or engine.actors"
            ) from error

    def close(self) -> None:
        """End the actors, and Ray if it was started for them."""
        if self.ray.module.is_initialized():
            for actor in self._actors:
                self.ray.module.kill(actor)
        self.ray.stop()


class RayCohortGrid(InProcessGrid):
    """Runs a round's chunks on a team of actors.

    Messages of a third-party strategy that cannot be stacked are answered in this process.

    Args:
        runtime: The client side of the run, in this process.
        team: Who trains.
        chunk: Clients at once; None to choose.
    """

    def __init__(self, runtime: ClientRuntime, team: Team, chunk: int | None) -> None:
        super().__init__(make_client_app(lambda _: runtime, zero_copy=True), runtime)
        self.team = team
        self.plan, self.actors = team.plan, len(team)
        self.chunk: int = chunk or team.chunk
        self.parts = 1 if chunk else PARTS
        if team.why:
            log.warning("ray_cohort engine runs '%s': %s", self.plan, team.why)
        self._timeout = math.inf

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        self._timeout = math.inf if timeout is None else timeout
        return super().send_and_receive(messages, timeout=timeout)

    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        groups = [messages] if isinstance(messages, Instructions) else group_messages(messages)
        if groups is None:
            return MessageReplies(self, messages)
        return CohortReplies(self.run_chunks, groups)

    def run_chunks(self, group: Instructions) -> Iterator[Chunk]:
        """Yield the replies to one group of instructions, chunk by chunk, in client order."""
        deadline = time.monotonic() + self._timeout
        model = self.team.put(_arrays(to_tensors(group.arrays)))
        waiting: deque[tuple[np.ndarray, Any]] = deque()
        at_most = min(self.chunk, math.ceil(len(group) / self.parts)) if len(group) else 1
        for part in even_parts(len(group), at_most):
            if len(waiting) == OUTSTANDING * len(self.team):
                yield self._chunk(*waiting.popleft(), deadline)
            clients, own = group.client_index[part], group.client_arrays(part)
            ask = Ask(
                message_type=group.message_type,
                server_round=group.server_round,
                clients=clients,
                client_arrays=_arrays(own(clients) if callable(own) else own),
                told=group.config,
                memory=_arrays(self.recall(clients)) if group.message_type == "train" else {},
            )
            waiting.append((ask.clients, self.team.submit(ask, model)))
        while waiting:
            yield self._chunk(*waiting.popleft(), deadline)

    def _chunk(self, clients: np.ndarray, answer: Any, deadline: float) -> Chunk:
        try:
            got: Answer = self.team.result(answer, deadline)
        except TimeoutError:
            late = f"no answer within {self._timeout:g} s (admission.timeout_s)"
            errors = {client: late for client in clients.tolist()}
            return Chunk(client_index=np.arange(0), arrays={}, errors=errors)
        answered = got.client_index.copy()  # what Ray hands out cannot be written to
        self.remember(answered, _tensors(got.memory))
        device = self.runtime.dataset.train_x.device
        arrays, extra = (
            {name: tensor.to(device) for name, tensor in _tensors(columns).items()}
            for columns in (got.arrays, got.client_arrays)
        )
        return Chunk(
            client_index=answered,
            arrays=arrays,
            client_arrays=extra,
            metrics={name: column.copy() for name, column in got.metrics.items()},
            errors=got.errors,
        )

    def close(self) -> None:
        self.team.close()
