"""What the in-process engines share: virtual node ids, contexts, and Flower's `Grid` contract."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.client.runtime import ClientRuntime
from fedsim.engines.flwr_compat import FIRST_NODE_ID, Run, make_run
from fedsim.parts import Part


class EnginePart(Part, abc.ABC):
    """An engine, as the `engine` group of a scenario names it."""

    @abc.abstractmethod
    def grid(self, runtime: ClientRuntime) -> LocalGrid:
        """Make the grid that runs this scenario's clients."""


class LocalGrid(Grid):
    """A Flower `Grid` whose nodes are virtual clients of this process.

    Node ids follow from client indices, so that a population of any size costs nothing.
    """

    zero_copy = True
    """Records may carry tensors instead of bytes."""

    def __init__(self, runtime: ClientRuntime) -> None:
        self.runtime = runtime
        self.num_clients = runtime.partition.num_clients
        self._run = make_run()
        self._available: np.ndarray | None = None
        self._states: dict[int, RecordDict] = {}
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

    def context(self, client: int) -> Context:
        """Return one client's Flower context; its state persists between messages."""
        return Context(
            run_id=self._run.run_id,
            node_id=client + FIRST_NODE_ID,
            node_config={"partition-id": client, "num-partitions": self.num_clients},
            state=self._states.get(client, RecordDict()),
            run_config={},
        )

    def keep_state(self, client: int, context: Context) -> None:
        """Keep what a client app left in its context's state."""
        if context.state:
            self._states[client] = context.state

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
        ids = []
        for reply in self.send_and_receive(list(messages)):
            self._pushed += 1
            ids.append(f"message-{self._pushed}")
            self._inbox[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._inbox.pop(i) for i in message_ids if i in self._inbox]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        batch = messages if isinstance(messages, Sequence) else list(messages)
        return self.execute(batch) if len(batch) else []

    @abc.abstractmethod
    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        """Run the clients that `messages` ask, and return their replies, lazily if possible."""
