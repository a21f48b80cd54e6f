"""The reference engine: one client app after another, in this process, exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.client.app import make_client_app
from fedsim.client.runtime import ClientRuntime
from fedsim.engines.base import EnginePart, LocalGrid, isolate, reason
from fedsim.engines.flwr_compat import client_error, through_wire
from fedsim.records import Chunk, Replies


@dataclass(frozen=True, kw_only=True)
class InProcess(EnginePart):
    """Sequential engine.

    Attributes:
        wire_check: Serialise every reply and instruction as a real wire would, to catch records
            that only work in one process; slower.
    """

    wire_check: bool = False

    def grid(self, runtime: ClientRuntime, flower_grid: Grid | None = None) -> InProcessGrid:
        runtime.estimator.check_alone(runtime)
        app = make_client_app(lambda _: runtime, zero_copy=not self.wire_check)
        return InProcessGrid(app, runtime, zero_copy=not self.wire_check)


class InProcessGrid(LocalGrid):
    """Runs any `ClientApp` for each message in turn."""

    def __init__(self, app: ClientApp, runtime: ClientRuntime, *, zero_copy: bool = True) -> None:
        super().__init__(runtime)
        self.app = app
        self.zero_copy = zero_copy

    def execute(self, messages: Sequence[Message]) -> Iterable[Message]:
        return MessageReplies(self, messages)

    def run_one(self, message: Message) -> Message:
        """Run one client app; an exception becomes an error reply, as in Flower's own engines.

        The client's state is then what it was before.
        """
        client = self.client_index(message.metadata.dst_node_id)
        context = self.context(client)
        carry = isolate if self.zero_copy else through_wire
        inbox = Message(
            carry(message.content),
            message.metadata.dst_node_id,
            message.metadata.message_type,
            group_id=message.metadata.group_id,
        )
        try:
            reply = self.app(inbox, context)
            if not self.zero_copy and reply.has_content():
                reply.content = carry(reply.content)
        except Exception as error:  # a client's failure is data here, counted by admission
            return client_error(message, reason(error))
        self.keep_state(client, context)
        return reply


class MessageReplies(Replies):
    """Replies computed one by one, as they are drawn, in the order of their instructions."""

    def __init__(self, grid: InProcessGrid, messages: Sequence[Message]) -> None:
        self.grid = grid
        self.messages = messages

    def __iter__(self) -> Iterator[Message]:
        for message in self.messages:
            yield self.grid.run_one(message)

    def chunks(self) -> Iterator[Chunk]:
        raise TypeError("replies that are messages are stacked by admission; see fedsim.admission")
