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
from collections.abc import Collection, Iterable, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import __version__
from fedsim.client.app import INFO
from fedsim.engines.base import IndexedGrid
from fedsim.engines.flwr_compat import absent_error
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
        self._here: set[int] = set()
        self._met: set[int] = set()
        self._questions: dict[str, int] = {}
        self._refused: dict[int, str] = {}
        self._waiting: dict[str, Message] = {}
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
        waited for first: a run must not race through its rounds with nobody there.

        Raises:
            TooFewClientsError: In vain.
        """
        messages = list(messages)
        if not messages:
            return []
        self.gather(1, [self.client_index(m.metadata.dst_node_id) for m in messages])
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        ttl = None if timeout is None else timeout + KEPT_S
        waiting = set(self._push(messages, ttl))
        replies: list[Message] = []
        while waiting:
            came = self._pull(waiting)
            replies += came.values()
            waiting -= came.keys()
            if time.monotonic() > deadline:
                break
            if waiting:
                time.sleep(self.poll_s)
                self._meet()
        if waiting:
            asked = [self._waiting.pop(late).metadata.dst_node_id for late in waiting]
            late = sorted(map(self.client_index, asked))
            log.warning("no reply within %g s from %d clients: %s", timeout, len(late), late[:10])
        return replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._meet(now=True)
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return list(self._pull(message_ids).values())

    def _push(self, messages: Sequence[Message], ttl: float | None) -> list[str]:
        """Send messages; return an id for each, of Flower's where it could be sent."""
        connected = self._connected()
        real: dict[int, Message] = {}
        for place, message in enumerate(messages):
            client = self.client_index(message.metadata.dst_node_id)
            if client in connected:
                real[place] = _readdressed(message, self._node_of[client], ttl)
        pushed = set(self.flower_grid.push_messages(list(real.values()))) if real else set()
        ids = []
        for place, message in enumerate(messages):
            sent = real.get(place)
            if sent is not None and sent.metadata.message_id in pushed:
                ids.append(sent.metadata.message_id)
                self._waiting[ids[-1]] = message
                continue
            why = "its node is not connected" if sent is None else "the message could not be sent"
            self._pushed += 1
            ids.append(f"unsent-{self._pushed}")
            self._inbox[ids[-1]] = absent_error(message, why)
        return ids

    def _pull(self, message_ids: Iterable[str]) -> dict[str, Message]:
        """Return what has come in answer to some messages, by their ids; once."""
        ids = list(message_ids)
        came = {i: self._inbox.pop(i) for i in ids if i in self._inbox}
        if sent := [i for i in ids if i in self._waiting]:
            for reply in self.flower_grid.pull_messages(sent):
                answered = reply.metadata.reply_to_message_id
                if (asked := self._waiting.pop(answered, None)) is not None:
                    came[answered] = _reply(reply, asked)
        return came

    def _connected(self) -> set[int]:
        return {client for client, node in self._node_of.items() if node in self._here}

    def _meet(self, *, now: bool = False) -> None:
        """Ask nodes that are new who they are, and note what those asked before have answered."""
        if now or time.monotonic() - self._looked > self.look_s:
            self._here = set(self.flower_grid.get_node_ids())
            self._looked = time.monotonic()
            # One that comes back is asked again: a device keeps its node id by its key, but may
            # have been restarted as another client.
            self._met &= self._here
            self._questions = {i: n for i, n in self._questions.items() if n in self._here}
            self._refused = {n: why for n, why in self._refused.items() if n in self._here}
            new = sorted(self._here - self._met)
            self._ask(new[: self.at_once - len(self._questions)])
        if self._questions:
            for reply in self.flower_grid.pull_messages(list(self._questions)):
                node = self._questions.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    self._note(node, reply)

    def _ask(self, nodes: Sequence[int]) -> None:
        questions = [
            Message(RecordDict({CONFIG: ConfigRecord()}), node, f"query.{INFO}", group_id="0")
            for node in nodes
        ]
        pushed = set(self.flower_grid.push_messages(questions)) if questions else set()
        for question in questions:
            if question.metadata.message_id in pushed:  # else again at the next look
                node = question.metadata.dst_node_id
                self._questions[question.metadata.message_id] = node
                self._met.add(node)

    def _note(self, node: int, reply: Message) -> None:
        self._node_of = {client: n for client, n in self._node_of.items() if n != node}
        if reply.has_error():
            return self._refuse(node, str(reply.error.reason or f"error {reply.error.code}"))
        answer = reply.content.config_records.get(CONFIG, ConfigRecord())
        client, version = answer.get("client-index"), answer.get("version")
        if version != __version__:
            return self._refuse(node, f"runs fedsim {version!r}, the server {__version__!r}")
        if type(client) is not int or not 0 <= client < self.num_clients:
            allowed = f"0..{self.num_clients - 1}"
            return self._refuse(node, f"says it is client {client!r}; allowed: {allowed}")
        if self._node_of.get(client) in self._here:
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
        silent = len(self._questions)
        more = [f"{silent} connected nodes have not said which client they are"] * bool(silent)
        more += [f"node {node} was left out: {why}" for node, why in self._refused.items()]
        return "\n".join([text, *more[:5]])


def _readdressed(message: Message, node: int, ttl: float | None) -> Message:
    """Return the same message to another node; a node that was away does no work in vain."""
    return Message(
        message.content,
        node,
        message.metadata.message_type,
        ttl=ttl,
        group_id=message.metadata.group_id,
    )


def _reply(reply: Message, asked: Message) -> Message:
    """Return a reply as if it came from the client that was asked."""
    if reply.has_error():
        return Message(reply.error, reply_to=asked)
    return Message(reply.content, reply_to=asked)
