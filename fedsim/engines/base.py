"""What the engines share: Flower's `Grid` contract, with nodes addressed by client index."""

from __future__ import annotations

import abc
import traceback
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.client.runtime import ClientRuntime
from fedsim.client_table import ClientTable
from fedsim.engines.flwr_compat import FIRST_NODE_ID, Run, make_run
from fedsim.parts import Part
from fedsim.records import MEMORY, Chunk, Params, to_record, to_tensors
from fedsim.strategy import State


class EnginePart(Part, abc.ABC):
    """An engine, as the `engine` group of a scenario names it."""

    deployed: ClassVar[bool] = False
    """Whether clients are devices of their own, whose privacy is not a simulation's."""

    @abc.abstractmethod
    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> IndexedGrid:
        """Make the grid that runs this scenario's clients.

        Args:
            runtime: The client side of the run.
            flower_grid: Where Flower has started the run, the grid that leads to its nodes.

        Raises:
            ConfigError: This engine cannot run here, or not in this way.
        """


class IndexedGrid(Grid):
    """A Flower `Grid` that addresses clients by their index, whatever runs behind it.

    Node ids follow from client indices, so that a population of any size costs nothing, and that a
    strategy which samples node ids by itself samples the same clients on every engine.
    """

    zero_copy = False
    """Whether records may carry tensors instead of bytes."""

    keeps_memory: ClassVar[bool] = False
    """Whether what clients remember is here, and in checkpoints; else their processes hold it."""

    def __init__(self, num_clients: int, run: Run) -> None:
        self.num_clients = num_clients
        self._run = run
        self._available: np.ndarray | None = None
        self._inbox: dict[str, Message] = {}
        self._pushed = 0

    def node_ids(self, client_index: np.ndarray) -> np.ndarray:
        """Return the node ids of some clients, int64 `[K]`."""
        return client_index + FIRST_NODE_ID

    def client_index(self, node_id: int) -> int:
        """Return the client index of one node."""
        return node_id - FIRST_NODE_ID

    def set_available(self, client_index: np.ndarray | None) -> None:
        """Say which clients are connected; None for all.

        A third-party strategy that samples by itself then samples among this round's participants.
        """
        self._available = client_index

    def close(self) -> None:
        """Give back what the engine holds beside memory; nothing may be sent afterwards."""

    def state_dict(self) -> State:
        """Return what virtual clients remember, for a checkpoint; real ones keep it themselves."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        clients = np.arange(self.num_clients) if self._available is None else self._available
        ids: list[int] = self.node_ids(clients).tolist()
        return ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        ids: list[str] = []
        waiting: dict[int, list[str]] = {}  # replies may come in another order
        for message in messages:
            self._pushed += 1
            ids.append(f"message-{self._pushed}")
            waiting.setdefault(message.metadata.dst_node_id, []).append(ids[-1])
        for reply in self.send_and_receive(messages):
            self._inbox[waiting[reply.metadata.src_node_id].pop(0)] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._inbox.pop(i) for i in message_ids if i in self._inbox]


class LocalGrid(IndexedGrid):
    """A grid whose clients are virtual ones of this process."""

    zero_copy = True
    keeps_memory = True

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__(runtime.partition.num_clients, make_run())
        self.runtime = runtime
        self._states: dict[int, RecordDict] = {}
        self._memory, self._remembering = ClientTable(), False

    def context(self, client: int) -> Context:
        """Return one client's Flower context, with a copy of the state that was kept last."""
        state = isolate(self._states.get(client, RecordDict()))
        memory = self.recall(np.array([client]))
        if memory:
            own = {name: rows[0] for name, rows in memory.items()}
            state[MEMORY] = to_record(own, zero_copy=self.zero_copy)
        return Context(
            run_id=self._run.run_id,
            node_id=client + FIRST_NODE_ID,
            node_config={"partition-id": client, "num-partitions": self.num_clients},
            state=state,
            run_config={},
        )

    def keep_state(self, client: int, context: Context) -> None:
        """Keep what a client app left in its context's state, for its next message.

        What it remembers is kept apart, where many clients' lies, and a checkpoint finds it.
        """
        memory = to_tensors(context.state.array_records.get(MEMORY, {}))
        if memory:
            del context.state[MEMORY]
            self.remember(np.array([client]), {n: t.unsqueeze(0) for n, t in memory.items()})
        if context.state:
            self._states[client] = context.state
        else:
            self._states.pop(client, None)

    def recall(self, clients: np.ndarray) -> Params:
        """Return what some clients remember, name -> `[K, ...]`; empty if nobody ever did."""
        return self._memory.rows(clients) if self._remembering else {}

    def remember(self, clients: np.ndarray, memory: Params) -> None:
        """Keep what some clients remember, name -> `[K, ...]`, until their next message."""
        if memory and len(clients):
            like = {name: rows[0] for name, rows in memory.items()}
            self._memory.fit(like, self.num_clients)
            self._memory.put(clients, memory)
            self._remembering = True

    def compressed(self, chunk: Chunk, start: Params, server_round: int) -> Chunk:
        """Return what clients send of the models of a chunk, and have them remember the rest."""
        compressor = self.runtime.compressor
        if compressor is None:
            return chunk
        clients = chunk.client_index
        sent, memory = compressor.compress(chunk, start, server_round, self.recall(clients))
        self.remember(clients, memory)
        return sent

    def state_dict(self) -> State:
        return self._memory.state_dict("") if self._remembering else {}

    def load_state_dict(self, state: State) -> None:
        if state:
            self._memory.load_state_dict(state, "")
        self._remembering = bool(state)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        batch = messages if isinstance(messages, Sequence) else list(messages)
        return self.execute(batch) if len(batch) else []

    @abc.abstractmethod
    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        """Run the clients that `messages` ask, and return their replies, lazily if possible."""


def isolate(content: RecordDict) -> RecordDict:
    """Copy the records but not the array payloads.

    Flower's strategies put one `RecordDict` object into all messages of a round; a real wire
    isolates clients by serialising, so an in-process grid must copy.
    """
    return RecordDict({key: record.copy() for key, record in content.items()})


def reason(error: Exception) -> str:
    """Return what a client says of its failure; the traceback is that of the current exception."""
    return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
