"""A made-up Flower grid with its nodes, and the time that passes there."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.client.app import make_client_app
from fedsim.engines.flwr_compat import Run, make_run, through_wire


class Clock:
    """Time that passes only while somebody sleeps; `at` has things happen then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: list[tuple[float, Any]] = []

    def monotonic(self) -> float:
        return self.now

    def at(self, seconds: float, event: Any) -> None:
        self.events.append((1000.0 + seconds, event))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due, event in [pair for pair in self.events if pair[0] <= self.now]:
            self.events.remove((due, event))
            event()


class Nodes(Grid):
    """What Flower's grid is to a server app: push, pull, and who is there. Never blocks.

    Each node is a client app with a `node_config`; `misbehave` changes what a node answers.
    """

    def __init__(self, clock: Clock, runtime: Any, seed: int = 0) -> None:
        self._run = make_run(77)
        self.clock, self.runtime = clock, runtime
        self.rng = np.random.default_rng(seed)
        self.app = make_client_app(lambda _: runtime, zero_copy=False)
        self.nodes: dict[int, int] = {}  # node id -> partition-id
        self.ready_s: dict[int, float] = {}  # node id -> seconds until it answers
        self.unpushable: set[int] = set()
        self.misbehave: dict[int, Any] = {}  # node id -> (message, reply) -> reply
        self.pushed: list[Message] = []
        self.pushes = 0
        self.run_config: dict[str, Any] = {}
        self.own: dict[int, dict[str, Any]] = {}  # partition-id -> what the node sets for itself
        self.states: dict[int, RecordDict] = {}  # node id -> what it keeps, as bytes can
        self._answers: dict[str, tuple[float, Message]] = {}

    def join(self, partition: int, *, ready_s: float = 0.0) -> int:
        node = int(self.rng.integers(2**64, dtype=np.uint64))
        self.nodes[node], self.ready_s[node] = partition, ready_s
        return node

    def leave(self, node: int) -> None:
        del self.nodes[node]

    def of(self, partition: int) -> int:
        return next(node for node, index in self.nodes.items() if index == partition)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        ids = list(self.nodes)
        return [ids[i] for i in self.rng.permutation(len(ids))]

    def push_messages(self, messages: Any) -> list[str]:
        self.pushes += 1
        ids: list[Any] = []
        for message in messages:
            assert message.metadata.message_id == ""
            message.metadata.__dict__["_message_id"] = message.object_id
            node = message.metadata.dst_node_id
            if node in self.unpushable or node not in self.nodes:
                ids.append(None)
                continue
            ids.append(message.metadata.message_id)
            self.pushed.append(message)
            self._answers[ids[-1]] = (self.clock.now + self.ready_s[node], self._answer(message))
        return ids

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        inbox = Message(through_wire(message.content), node, message.metadata.message_type)
        inbox.metadata.__dict__["_message_id"] = message.metadata.message_id
        config = {"partition-id": self.nodes[node], **self.own.get(self.nodes[node], {})}
        context = Context(
            run_id=77,
            node_id=node,
            node_config=config,
            state=through_wire(self.states.get(node, RecordDict())),
            run_config=self.run_config,
        )
        try:
            reply = self.app(inbox, context)
            reply.content = through_wire(reply.content)
            self.states[node] = context.state
        except Exception as error:
            reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=inbox)
        return self.misbehave.get(node, lambda _, reply: reply)(inbox, reply)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        now, answers = self.clock.now, self._answers
        due = [i for i in message_ids if i in answers and answers[i][0] <= now]
        order = self.rng.permutation(len(due))  # the network's is any
        return [answers.pop(due[i])[1] for i in order]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("it would block")

    def asked(self, kind: str = "train") -> list[int]:
        """Who was sent messages of a kind, by the configuration of the nodes, in any order."""
        sent = [m for m in self.pushed if m.metadata.message_type == kind]
        return sorted(self.nodes[m.metadata.dst_node_id] for m in sent)
