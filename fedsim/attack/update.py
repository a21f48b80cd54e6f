"""Attacks on what malicious clients send, between the engine and admission.

Attackers' rows of chunks, or their messages, are replaced; all else passes as it came. An attack
that looks at single clients keeps the replies lazy; one of colluding clients needs the whole round
first, and holds it in memory.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedsim.attack.base import Attackers, SomeMalicious
from fedsim.data.dataset import Dataset
from fedsim.records import (
    ARRAYS,
    Chunk,
    Params,
    Replies,
    TensorArray,
    stack,
    to_record,
    to_tensors,
)


@dataclass(frozen=True, kw_only=True)
class UpdateAttack(SomeMalicious):
    """An attack by which malicious clients send another update than their own, W − x.

    Integer tensors, and whatever a client half uploads beside the model, are sent as they are.
    """

    @property
    def colluding(self) -> bool:
        """Whether `forge` needs all of a round's attackers at once."""
        return False

    @abc.abstractmethod
    def forge(self, updates: Tensor, num_replies: int) -> Tensor:
        """Return what is sent instead of the attackers' honest updates of one tensor.

        Args:
            updates: `[M, ...]`, a row per attacker: all of the round's if `colluding`, else some.
            num_replies: How many clients, honest ones included, reply in this round if `colluding`,
                else 0.
        """

    def arm(
        self, clients: np.ndarray, dataset: Dataset, client_index: Callable[[int], int]
    ) -> Attackers:
        def tamper(replies: Iterable[Message], params: Params) -> Iterable[Message]:
            forged = ForgedReplies(self, clients, client_index, replies, params)
            # Ours come in the clients' order; others are still to be sorted by admission.
            return forged if isinstance(replies, Replies) else list(forged)

        return Attackers(clients=clients, tamper=tamper)


class ForgedReplies(Replies):
    """The replies of one exchange, the attackers' ones forged as they are drawn."""

    def __init__(
        self,
        attack: UpdateAttack,
        clients: np.ndarray,
        client_index: Callable[[int], int],
        replies: Iterable[Message],
        params: Params,
    ) -> None:
        self.attack = attack
        self.clients, self.liars = clients, set(clients.tolist())
        self.client_index = client_index
        self.replies = replies
        self.params = params
        self.stacked = bool(getattr(replies, "stacked", False))

    def chunks(self) -> Iterator[Chunk]:
        if not isinstance(self.replies, Replies):
            raise TypeError("replies that are messages are stacked by admission")
        if not self.attack.colluding:
            for chunk in self.replies.chunks():
                yield self._forge_rows(chunk, num_replies=0)
            return
        everyone = stack(self.replies)
        if everyone is not None:
            yield self._forge_rows(everyone, num_replies=len(everyone))

    def __iter__(self) -> Iterator[Message]:
        if not self.attack.colluding:
            for message in self.replies:
                self._forge_messages([message], num_replies=0)
                yield message
            return
        messages = list(self.replies)
        self._forge_messages(messages, num_replies=sum(m.has_content() for m in messages))
        yield from messages

    def _forge_rows(self, chunk: Chunk, num_replies: int) -> Chunk:
        rows = np.flatnonzero(np.isin(chunk.client_index, self.clients))
        if not len(rows):
            return chunk
        arrays = {}
        for name, models in chunk.arrays.items():
            index = torch.from_numpy(rows).to(models.device)
            # Not in place: the memory is the engine's.
            arrays[name] = models.index_copy(0, index, self._sent(name, models[index], num_replies))
        return Chunk(
            client_index=chunk.client_index,
            arrays=arrays,
            client_arrays=chunk.client_arrays,
            metrics=chunk.metrics,
        )

    def _forge_messages(self, messages: list[Message], num_replies: int) -> None:
        """Replace the model in the attackers' messages, which are this exchange's own."""
        lying = [message for message in messages if self._lies(message)]
        # By client, so that sums over colluding ones do not depend on the network.
        lying.sort(key=lambda message: message.metadata.src_node_id)
        if not lying:
            return
        records = [message.content.array_records[ARRAYS] for message in lying]
        models = [to_tensors(record) for record in records]
        sent = {
            name: self._sent(name, torch.stack([model[name] for model in models]), num_replies)
            for name in models[0]
        }
        for row, (message, record) in enumerate(zip(lying, records, strict=True)):
            zero_copy = any(isinstance(array, TensorArray) for array in record.values())
            forged = {name: rows[row] for name, rows in sent.items()}
            content = RecordDict(dict(message.content))
            content[ARRAYS] = to_record(forged, zero_copy=zero_copy)
            message.content = content

    def _lies(self, message: Message) -> bool:
        if not message.has_content() or ARRAYS not in message.content.array_records:
            return False  # it failed by itself
        return self.client_index(message.metadata.src_node_id) in self.liars

    def _sent(self, name: str, models: Tensor, num_replies: int) -> Tensor:
        """Return what attackers send instead of their models of one tensor, `[M, ...]`."""
        if not models.is_floating_point():
            return models
        x = self.params[name].to(models.device, models.dtype)
        return x + self.attack.forge(models - x, num_replies)
