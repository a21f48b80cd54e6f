"""Clients behind a grid of Flower's own: its simulation engine (Ray), or real SuperNodes.

Flower's node ids are random, and new in every run. Here strategies see the node ids of
`IndexedGrid`; each node is asked once which client it is, and messages are readdressed on their
way. What a strategy draws, and the order in which replies are summed, are then the same on every
engine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import __version__
from fedsim.client.app import INFO
from fedsim.engines.base import IndexedGrid
from fedsim.engines.flwr_compat import client_error
from fedsim.errors import TooFewClientsError
from fedsim.records import CONFIG

log = logging.getLogger(__name__)

KEPT_S = 60.0
"""How much longer than anybody waits for its reply a message is kept for its node."""


class RemoteGrid(IndexedGrid):
    """Readdresses messages between client indices and the nodes of another grid.

    Args:
        flower_grid: Flower's grid of this run.
        num_clients: N; clients are 0..N-1, one node each.
        connect_s: Seconds to wait for clients.
    """

    poll_s = 0.3
    """Seconds between looks for replies."""
    look_s = 2.0
    """Seconds between looks for nodes that have joined or left."""
    at_once = 10_000
    """How many nodes are asked at a time who they are."""

    def __init__(self, flower_grid: Grid, num_clients: int, connect_s: float) -> None:
        super().__init__(num_clients, flower_grid.run)
        self.flower_grid = flower_grid
        self.connect_s = connect_s
        self._node_of: dict[int, int] = {}
        self._met: set[int] = set()
        self._here: set[int] = set()
        self._questions: dict[str, int] = {}
        self._refused: dict[int, str] = {}
        self._looked = -math.inf

    def gather(self, minimum: int, among: Collection[int] | None = None) -> None:
        """Wait until `minimum` clients are connected, of all or of some.

        Raises:
            TooFewClientsError: They are not within `connect_s` seconds.
        """
        wanted = range(self.num_clients) if among is None else among
        deadline = time.monotonic() + self.connect_s
        self._meet(now=True)
        while len(self._connected().intersection(wanted)) < minimum:
            if time.monotonic() > deadline:
                raise TooFewClientsError(self._too_few(minimum, wanted))
            time.sleep(self.poll_s)
            self._meet()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages to the nodes of their clients; return what came back within `timeout`.

        A client without a node answers with an error at once; if none of them has one, they are
        waited for first.

        Raises:
            TooFewClientsError: In vain.
        """
        messages = list(messages)
        if not messages:
            return []
        self.gather(1, [self.client_index(m.metadata.dst_node_id) for m in messages])
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        connected, replies = self._connected(), []
        sent: list[tuple[Message, Message]] = []
        for message in messages:
            client = self.client_index(message.metadata.dst_node_id)
            if client in connected:
                sent.append((message, _readdressed(message, self._node_of[client], timeout)))
            else:
                replies.append(client_error(message, "its node is not connected"))
        pushed = set(self.flower_grid.push_messages([real for _, real in sent]) if sent else ())
        waiting: dict[str, Message] = {}
        for message, real in sent:
            if real.metadata.message_id in pushed:
                waiting[real.metadata.message_id] = message
            else:
                replies.append(client_error(message, "the message could not be sent"))
        while waiting:
            for reply in self.flower_grid.pull_messages(list(waiting)):
                asked = waiting.pop(reply.metadata.reply_to_message_id)
                replies.append(_reply(reply, asked))
            if waiting and time.monotonic() > deadline:
                late = sorted(self.client_index(m.metadata.dst_node_id) for m in waiting.values())
                log.warning(
                    "no reply within %g s from %d clients: %s", timeout, len(late), late[:10]
                )
                break
            if waiting:
                time.sleep(self.poll_s)
                self._meet()
        return replies

    def _connected(self) -> set[int]:
        return {client for client, node in self._node_of.items() if node in self._here}

    def _meet(self, *, now: bool = False) -> None:
        """Ask nodes that are new who they are, and note what those asked before have answered."""
        if now or time.monotonic() - self._looked > self.look_s:
            self._here = set(self.flower_grid.get_node_ids())
            self._looked = time.monotonic()
            new = sorted(self._here - self._met)
            for node in new[: self.at_once - len(self._questions)]:
                question = Message(
                    RecordDict({CONFIG: ConfigRecord()}), node, f"query.{INFO}", group_id="0"
                )
                if set(self.flower_grid.push_messages([question])) - {None}:
                    self._questions[question.metadata.message_id] = node
                    self._met.add(node)
        if self._questions:
            for reply in self.flower_grid.pull_messages(list(self._questions)):
                node = self._questions.pop(reply.metadata.reply_to_message_id)
                self._note(node, reply)

    def _note(self, node: int, reply: Message) -> None:
        if reply.has_error():
            return self._refuse(node, str(reply.error.reason or f"error {reply.error.code}"))
        answer = reply.content.config_records.get(CONFIG, ConfigRecord())
        client, version = answer.get("client-index"), answer.get("version")
        if version != __version__:
            return self._refuse(node, f"runs fedsim {version!r}, the server {__version__!r}")
        if not isinstance(client, int) or not 0 <= client < self.num_clients:
            allowed = f"0..{self.num_clients - 1}"
            return self._refuse(node, f"says it is client {client!r}; allowed: {allowed}")
        before = self._node_of.get(client)
        if before is not None and before in self._here:
            # A device that was restarted counts as here under its old id, too, for a minute.
            log.warning("client %d has a new node; if two devices share partition-id=%d, the "
                        "older one is left out", client, client)  # fmt: skip
        self._node_of[client] = node
        return None

    def _refuse(self, node: int, why: str) -> None:
        log.warning("node %d is left out: %s", node, why)
        self._refused[node] = why

    def _too_few(self, minimum: int, wanted: Collection[int]) -> str:
        connected = self._connected()
        missing = [client for client in wanted if client not in connected]
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        text = (
            f"{len(wanted) - len(missing)} of {len(wanted)} clients have connected within "
            f"{self.connect_s:g} s, but {minimum} are needed; missing: {shown}. Start their "
            "SuperNodes (--node-config 'partition-id=K'), or change engine.min_clients, "
            "engine.connect_s or partition.num_clients"
        )
        reasons = [f"\nnode {node} was left out: {why}" for node, why in self._refused.items()]
        silent = len(self._questions)
        reasons += [f"\n{silent} connected nodes have not said which client they are"] * bool(
            silent
        )
        return text + "".join(reasons[:5])


def _readdressed(message: Message, node: int, timeout: float | None) -> Message:
    """Return the same message to another node; a node that was away does no work in vain."""
    return Message(
        message.content,
        node,
        message.metadata.message_type,
        ttl=None if timeout is None else timeout + KEPT_S,
        group_id=message.metadata.group_id,
    )


def _reply(reply: Message, asked: Message) -> Message:
    """Return a reply as if it came from the client that was asked."""
    if reply.has_error():
        return Message(reply.error, reply_to=asked)
    return Message(reply.content, reply_to=asked)
