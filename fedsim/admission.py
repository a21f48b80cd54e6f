"""Admission: every reply is checked before a strategy may see it.

A bad reply is rejected and counted; it never ends the run and never reaches the model. The rules
are the same whether replies come as messages (checked one by one, before anything is allocated)
or as the cohort engine's stacked chunks (checked column-wise; keys and shapes are ours there).

Rejected, by reason:
    error       the client app raised, or the node is gone
    unknown     nobody was asked under that node id
    stale       it answers another round
    duplicate   a second reply from the same client
    content     a record is missing or one too many; an array has another name, shape, dtype or
                byte order; it is no encoding of an update, where updates are sent encoded; or it
                cannot be averaged with the others (other metrics than most)
    weight      `num-examples` is absent, not a number, not in (0, max_examples]
    non-finite  a NaN or an infinity in the arrays or metrics
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeGuard

import numpy as np
import torch
from flwr.app import Array, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.compression.update import Compressor
from fedsim.engines.flwr_compat import is_absence
from fedsim.errors import FedsimError
from fedsim.parts import Part, Range
from fedsim.records import (
    BUSY,
    CLIENT_ARRAYS,
    NUM_EXAMPLES,
    RECEIVED,
    WIRE_CHUNK,
    Chunk,
    Instructions,
    Params,
    Replies,
    TensorArray,
    decode,
    is_finite,
    late_of,
    reply_content,
    stack_replies,
    to_record,
    to_tensors,
)

if TYPE_CHECKING:
    from fedsim.pace.gate import Gate

MAX_REASON = 4000
"""Characters kept of what a client says about its error: a traceback, not a flood."""

Decoded = tuple[int, Params, Params, dict[str, float]]
"""(client index, arrays, client arrays, metrics) of one admitted reply."""


class ClientError(FedsimError):
    """A client failed, and the scenario asks to stop in that case; or every client failed."""


class Rejected(Exception):
    """One reply is not admitted; `reason` is one of the words in this file's header."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Admission(Part):
    """The rules, as the scenario's `admission` section sets them.

    Attributes:
        max_examples: The largest `num-examples` a client may claim.
        on_failure: `"continue"`: count and go on. `"stop"`: the first rejected reply ends the run.
            Either way, a round in which every reply is a client's error ends the run: that is a bug
            in the client code, not a fault of a device. Nodes that are gone do not reply.
        timeout_s: Seconds that one exchange may take; later replies are lost.
    """

    max_examples: Annotated[int, Range(ge=1)] = 10_000_000
    on_failure: Literal["continue", "stop"] = "continue"
    timeout_s: Annotated[float, Range(gt=0)] = 3600.0

    def admit(
        self,
        sent: Iterable[Message],
        replies: Iterable[Message],
        expected: Mapping[str, Tensor] | None,
        extra: Mapping[str, Tensor] | None = None,
        client_index: Callable[[int], int] | None = None,
        compressor: Compressor | None = None,
    ) -> AdmittedReplies:
        """Wrap `replies` so that only good ones are drawn from it.

        Args:
            sent: What was asked; `Instructions`, or any messages.
            replies: What came back; may be lazy.
            expected: The model's names, shapes and dtypes; None where replies carry metrics only.
            extra: The same for the `client-arrays` record, where the client half sends one.
            client_index: Node id -> client index, where `sent` does not say; by default, clients
                are numbered in the order of their node ids.
            compressor: What decodes the updates that clients send in place of models; None if they
                send models.
        """
        return AdmittedReplies(
            rules=self,
            sent=sent,
            replies=replies,
            expected=expected,
            extra=extra or {},
            client_index=client_index,
            compressor=compressor,
        )


@dataclass
class AdmittedReplies(Replies):
    """The good replies of one exchange, and a count of the bad ones once they are drawn.

    Attributes:
        rejected: reason -> count.
        details: The first few rejections in words, for the log.
        admitted: Client indices of the good replies, in the order drawn.
        metrics: name -> the good replies' values, in the same order.
        observe: Called with the good replies just before they are drawn; None to leave it out.
        weigh: Gives the bytes of a reply's content; None to leave it out.
        received_bytes: Client index -> bytes of what it has sent, good or bad; without `weigh`,
            empty. A client that failed has sent nothing.
        busy: Gives the simulated seconds that clients whose replies have been weighed were busy,
            or None where they cannot be told; chunks then carry them, where a strategy needs them
            before all are in. None to leave it out.
        gate: Lets pass those of the good replies that are used, and adds kept ones; None to use
            all. `admitted`, `metrics` and `observe` are of what passes, without the kept ones.
        failed: Who has sent nothing but what was rejected, so far.
    """

    rules: Admission
    sent: Iterable[Message]
    replies: Iterable[Message]
    expected: Mapping[str, Tensor] | None
    extra: Mapping[str, Tensor]
    client_index: Callable[[int], int] | None = None
    compressor: Compressor | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    observe: Callable[[Chunk], None] | None = None
    weigh: Callable[[RecordDict], int] | None = None
    received_bytes: dict[int, int] = field(default_factory=dict)
    busy: Callable[[AdmittedReplies, np.ndarray], np.ndarray | None] | None = None
    gate: Gate | None = None
    failed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._failure = ""
        self._faulty: set[int] = set()
        self._heard: set[int] = set()
        self._ended = False
        if isinstance(self.sent, Instructions):
            pairs = zip(self.sent.node_ids.tolist(), self.sent.client_index.tolist(), strict=True)
            self._client_of = dict(pairs)
            self._group: str | None = str(self.sent.server_round)
        else:
            self.sent = list(self.sent)
            self._sent_to = {message.metadata.dst_node_id: message for message in self.sent}
            node_ids = sorted(message.metadata.dst_node_id for message in self.sent)
            rank = {node: index for index, node in enumerate(node_ids)}
            index = self.client_index or rank.__getitem__
            self._client_of = {node: index(node) for node in node_ids}
            self._group = None

    @classmethod
    def nothing(cls) -> AdmittedReplies:
        """Return the replies of an exchange in which nobody was asked."""
        return cls(rules=Admission(), sent=[], replies=[], expected=None, extra={})

    @property
    def asked(self) -> int:
        """How many clients were asked."""
        return len(self._client_of)

    @property
    def late(self) -> int:
        """How many clients had not answered when the exchange ended, in whatever way.

        An answer to another round is none. 0 until all replies are drawn.
        """
        if not self._ended:
            return 0
        missed = set() if self.gate is None else self.gate.late
        return len((set(self._client_of.values()) - self._heard) | missed)

    @property
    def least_bytes(self) -> int:
        """What the arrays of a good reply take at least, sent as they are or encoded."""
        sent = self.expected or {}
        if self.compressor is not None:
            sent = self.compressor.like(sent)
        return sum(t.numel() * t.element_size() for t in (*sent.values(), *self.extra.values()))

    @property
    def num_faulty(self) -> int:
        return len(self._faulty.difference(self.admitted))

    def client_of(self, sent: Message) -> int:
        """Return the client that an instruction was for."""
        client: int = self._client_of[sent.metadata.dst_node_id]
        return client

    @cached_property
    def clients(self) -> np.ndarray:
        """Which clients were asked, sorted int64."""
        return np.array(sorted(self._client_of.values()), np.int64)

    def mean_metrics(self) -> dict[str, float]:
        """Return the admitted metrics averaged by samples, and the samples' total."""
        return _means({k: v for k, v in self.metrics.items() if not k.startswith(RECEIVED)})

    def per_client(self) -> dict[str, list[float]]:
        """Return the admitted metrics as columns, with `client-index`; empty if there are none."""
        if not self.admitted:
            return {}
        count = len(self.admitted)
        columns = {name: column for name, column in self.metrics.items() if len(column) == count}
        return {"client-index": [float(client) for client in self.admitted], **columns}

    def received(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Return (means, columns by client) of the scores that came with training replies.

        They are what `mean_metrics` and `per_client` return of an exchange of their own; of the
        clients that have samples to score on.
        """
        columns = {
            name.removeprefix(RECEIVED): column
            for name, column in self.metrics.items()
            if name.startswith(RECEIVED) and len(column) == len(self.admitted)
        }
        counts = np.array(columns.get(NUM_EXAMPLES, []))
        some = np.flatnonzero(counts > 0)
        some = some[np.argsort(np.array(self.admitted)[some])]  # engines train in another order
        if not len(some):
            return {}, {}
        columns = {name: [column[row] for row in some] for name, column in columns.items()}
        clients = [float(self.admitted[row]) for row in some]
        return _means(columns), {"client-index": clients, **columns}

    def __iter__(self) -> Iterator[Message]:
        seen: set[int] = set()
        good = []
        for message in self.replies:
            decoded = self._check(message, seen)
            if decoded is not None:
                good.append((decoded[0], message, _form(message.content), decoded[3]))
        # By client: float sums depend on their order, and the network's is any.
        good.sort(key=lambda reply: reply[0])
        # Flower's own strategies refuse the whole round if one reply is of another form.
        usual = Counter(form for _, _, form, _ in good).most_common(1)
        late = self._late_messages([client for client, _, f, _ in good if f == usual[0][0]])
        for client, message, form, metrics in good:
            if client in late:
                continue
            if form == usual[0][0]:
                self._note_metrics([client], {name: [value] for name, value in metrics.items()})
                if self.observe is not None or self.compressor is not None:
                    arrays = self._arrays(message.content, message.metadata.src_node_id)
                    if self.compressor is not None:  # the strategy's own code reads the message
                        message.content = _with_model(message.content, arrays[0])
                    if self.observe is not None:
                        self.observe(stack_replies([(client, *arrays, metrics)]))
                yield message
            else:
                self._reject("content", f"client {client}", "has other metrics than most replies")
                self._faulty.add(client)
        self._end()

    def _late_messages(self, clients: list[int]) -> set[int]:
        """Return whose good messages are not used, once all have come."""
        if self.gate is None:
            return set()
        index = np.array(clients, np.int64)
        return set(index[~self.gate.pick(index, self)].tolist())

    def chunks(self) -> Iterator[Chunk]:
        good = self._good_chunks()
        for chunk in good if self.gate is None else self.gate.on_time(good, self):
            self._note_metrics(
                chunk.client_index.tolist(), {k: v.tolist() for k, v in chunk.metrics.items()}
            )
            if len(chunk):
                if self.observe is not None:
                    self.observe(chunk)
                yield self._timed(chunk)
        if self.gate is not None:
            yield from self.gate.arrivals()
        self._end()

    def _good_chunks(self) -> Iterator[Chunk]:
        """Yield the good replies, on time or not, as they are drawn."""
        chunks = self.replies.chunks() if _is_stacked(self.replies) else self._stacked_messages()
        for chunk in chunks:
            if _is_stacked(self.replies):
                self._weigh_rows(chunk)
                chunk = self._restored(chunk)
            for client, told in sorted(chunk.errors.items()):
                self._reject("error", f"client {client}", self._told(f"client {client}", told))
            self._heard.update(chunk.errors)
            self.failed.update(chunk.errors)
            if not len(chunk):
                continue
            self._heard.update(chunk.client_index.tolist())
            yield self._check_columns(chunk)

    def _timed(self, chunk: Chunk) -> Chunk:
        seconds_K = None if self.busy is None else self.busy(self, chunk.client_index)
        if seconds_K is None:
            return chunk
        return replace(chunk, metrics={**chunk.metrics, BUSY: seconds_K})

    def _stacked_messages(self) -> Iterator[Chunk]:
        seen: set[int] = set()
        decoded = (self._check(message, seen) for message in self.replies)
        good: Iterator[Decoded] = (reply for reply in decoded if reply is not None)
        if not isinstance(self.replies, Replies):  # ours come in client order, the network's do not
            good = iter(sorted(good, key=lambda reply: reply[0]))
        while batch := list(islice(good, WIRE_CHUNK)):
            yield stack_replies(batch)

    def _check(self, message: Message, seen: set[int]) -> Decoded | None:
        node = message.metadata.src_node_id
        sender = f"client {self._client_of[node]}" if node in self._client_of else f"node {node}"
        if self.weigh is not None and node in self._client_of and message.has_content():
            before = self.received_bytes.get(self._client_of[node], 0)
            self.received_bytes[self._client_of[node]] = before + self.weigh(message.content)
        try:
            decoded = self._decode(message, seen)
        except Rejected as rejection:
            self._reject(rejection.reason, sender, str(rejection))
            if node in self._client_of and rejection.reason != "stale":
                self._faulty.add(self._client_of[node])
                self._heard.add(self._client_of[node])
                if rejection.reason != "duplicate":
                    self.failed.add(self._client_of[node])
            return None
        self._heard.add(self._client_of[node])
        self.failed.discard(self._client_of[node])
        return decoded

    def _weigh_rows(self, chunk: Chunk) -> None:
        """Weigh one row as the message that it would be; the others are as long."""
        if self.weigh is None or not len(chunk):
            return
        row = {
            "arrays": {name: rows[0] for name, rows in chunk.arrays.items()} or None,
            "client_arrays": {name: rows[0] for name, rows in chunk.client_arrays.items()},
            "metrics": {name: float(column[0]) for name, column in chunk.metrics.items()},
        }
        each = self.weigh(reply_content(**row, zero_copy=True))  # type: ignore[arg-type]
        self.received_bytes.update(dict.fromkeys(chunk.client_index.tolist(), each))

    def _decode(self, message: Message, seen: set[int]) -> Decoded | None:
        node = message.metadata.src_node_id
        if message.has_error():  # sent by the client, or by Flower on behalf of a node that is gone
            told = message.error.reason or f"error code {message.error.code}"
            sender = f"client {self._client_of[node]}" if node in self._client_of else ""
            absent = is_absence(message.error)  # nobody's failure
            raise Rejected("error", self._told("" if absent else sender, told))
        if node not in self._client_of:
            raise Rejected("unknown", "was not asked")
        if self._group is not None and message.metadata.group_id != self._group:
            raise Rejected("stale", f"answers round {message.metadata.group_id or '?'}")
        client = self._client_of[node]
        if client in seen:
            raise Rejected("duplicate", "answered twice")
        if not message.has_content():
            raise Rejected("content", "is empty")
        metrics = _metrics(message.content)
        if self.expected is None and metrics.get(NUM_EXAMPLES) == 0:
            return None  # a client without held-out samples has nothing to say, and did no wrong
        self._check_weight(metrics.get(NUM_EXAMPLES))
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Rejected("non-finite", f"metric '{name}' is {value}")
        arrays, client_arrays = self._arrays(message.content, node)
        for name, tensor in (*arrays.items(), *client_arrays.items()):
            if not is_finite(tensor):
                raise Rejected("non-finite", f"array '{name}' holds a NaN or an infinity")
        seen.add(client)
        return client, arrays, client_arrays, metrics

    def _told(self, sender: str, told: str) -> str:
        """Return what is kept of a failure, and note the first one of a client."""
        told = told[:MAX_REASON]
        if sender and not self._failure:
            self._failure = f"{sender}: {told}"
        return told

    def _check_weight(self, weight: float | None) -> None:
        if weight is None or not 0 < weight <= self.rules.max_examples:
            allowed = f"(0, {self.rules.max_examples}]"
            raise Rejected("weight", f"'{NUM_EXAMPLES}' is {weight}; allowed: {allowed}")

    def _arrays(self, content: RecordDict, node: int) -> tuple[Params, Params]:
        if self.expected is None:
            return {}, {}
        records = dict(content.array_records)
        extra: Mapping[str, Array] = records.pop(CLIENT_ARRAYS, {})
        if len(records) != 1:
            raise Rejected("content", f"has {len(records)} model records, not one")
        (model,) = records.values()
        uploaded = _decode_record(extra, self.extra)
        if self.compressor is None:
            return _decode_record(model, self.expected), uploaded
        encoded = _decode_record(model, self.compressor.like(self.expected))
        try:
            return self.compressor.restore(encoded, self._start(self.expected, node)), uploaded
        except ValueError as error:
            raise Rejected("content", f"the encoded update {error}") from error

    def _start(self, expected: Mapping[str, Tensor], node: int) -> Mapping[str, Tensor]:
        """Return the model that a client was sent, which its encoded update starts from."""
        if isinstance(self.sent, Instructions):
            return expected
        (record,) = self._sent_to[node].content.array_records.values()
        return {
            n: t.to(expected[n].device, expected[n].dtype) for n, t in to_tensors(record).items()
        }

    def _restored(self, chunk: Chunk) -> Chunk:
        """Return a chunk of encoded updates as one of models, without what is no encoding."""
        if self.compressor is None or self.expected is None or not len(chunk):
            return chunk
        good = np.ones(len(chunk), bool)
        models = {n: x.new_zeros((len(chunk), *x.shape)) for n, x in self.expected.items()}
        for k, client in enumerate(chunk.client_index.tolist()):
            sent = {name: rows[k] for name, rows in chunk.arrays.items()}
            try:
                model = self.compressor.restore(sent, self.expected)
            except ValueError as error:
                good[k] = False
                self._reject("content", f"client {client}", f"the encoded update {error}")
                self._faulty.add(client)
                self._heard.add(client)
                self.failed.add(client)
                continue
            for name, rows in models.items():
                rows[k].copy_(model[name])
        return replace(replace(chunk, arrays=models).rows(good), errors=chunk.errors)

    def _check_columns(self, chunk: Chunk) -> Chunk:
        """Drop the rows of a chunk that are not admitted; one pass over the arrays."""
        weights = chunk.metrics.get(NUM_EXAMPLES, np.full(len(chunk), np.nan))
        good_weight = (weights > 0) & (weights <= self.rules.max_examples)
        nothing = (weights == 0) & (self.expected is None)  # see `_decode`
        finite = np.ones(len(chunk), bool)
        for column in chunk.metrics.values():
            finite &= np.isfinite(column)
        for tensor in (*_doubtful(chunk.arrays), *chunk.client_arrays.values()):
            # One pass, as in `is_finite`; only rows whose sum is not finite are looked at again.
            sums_K = tensor.reshape(len(chunk), tensor[0].numel()).sum(1)
            for row in np.flatnonzero(~torch.isfinite(sums_K).cpu().numpy()):
                finite[row] &= is_finite(tensor[row])
        for row in np.flatnonzero(~(good_weight & finite) & ~nothing):
            reason = "weight" if not good_weight[row] else "non-finite"
            claim = f"'{NUM_EXAMPLES}' is {weights[row]}"
            detail = claim if reason == "weight" else "holds a NaN or an infinity"
            self._reject(reason, f"client {chunk.client_index[row]}", detail)
            self._faulty.add(int(chunk.client_index[row]))
            self.failed.add(int(chunk.client_index[row]))
        return chunk.rows(good_weight & finite)

    def _note_metrics(self, clients: list[int], metrics: Mapping[str, list[float]]) -> None:
        self.admitted += clients
        for name, values in metrics.items():
            self.metrics.setdefault(name, []).extend(values)

    def _reject(self, reason: str, sender: str, detail: str) -> None:
        self.rejected[reason] += 1
        if len(self.details) < 5:
            self.details.append(f"reply of {sender} rejected ({reason}): {detail}")
        if self.rules.on_failure == "stop":
            raise ClientError(
                f"a reply was rejected: {self.details[-1]}\n"
                "admission.on_failure=stop ends the run here; "
                "use admission.on_failure=continue to count such replies and go on"
            )

    def _end(self) -> None:
        self._ended = True
        self._fail_fast()

    def _fail_fast(self) -> None:
        missed = self.gate is not None and self.gate.late
        some = self.admitted or missed
        if self._failure and not some and set(self.rejected) == {"error"}:
            raise ClientError(f"every client failed; the first one said:\n{self._failure}")


def _doubtful(arrays: Params) -> Iterator[Tensor]:
    """Yield the arrays that may hold a NaN or an infinity, without making those that cannot."""
    for name in arrays:
        late = late_of(arrays, name)
        if late is None or not bool(late.surely_finite().all()):
            yield arrays[name]


def _decode_record(record: Mapping[str, Array], expected: Mapping[str, Tensor]) -> Params:
    if set(record) != set(expected):
        odd = sorted(set(record) ^ set(expected))
        raise Rejected("content", f"array names differ from what was asked for: {odd[:4]}")
    arrays = {}
    for name, like in expected.items():
        try:
            arrays[name] = decode(record[name], like)
        except ValueError as error:
            raise Rejected("content", f"array '{name}' {error}") from error
    return arrays


def _with_model(content: RecordDict, model: Params) -> RecordDict:
    """Return a reply with a model in the place of what was sent for it."""
    (key,) = (key for key in content.array_records if key != CLIENT_ARRAYS)
    zero_copy = any(isinstance(array, TensorArray) for array in content.array_records[key].values())
    return RecordDict({**content, key: to_record(model, zero_copy=zero_copy)})


def _means(metrics: Mapping[str, list[float]]) -> dict[str, float]:
    weights = np.array(metrics.get(NUM_EXAMPLES, []))
    if not len(weights):
        return {}
    means = {
        name: float(np.average(values, weights=weights))
        for name, values in metrics.items()
        if name != NUM_EXAMPLES and len(values) == len(weights)
    }
    return {**means, NUM_EXAMPLES: float(weights.sum())}


class _Stacked(Protocol):
    def chunks(self) -> Iterator[Chunk]: ...


def _is_stacked(replies: Iterable[Message]) -> TypeGuard[_Stacked]:
    return isinstance(replies, Replies) and getattr(replies, "stacked", False)


def _metrics(content: RecordDict) -> dict[str, float]:
    """Return the scalar metrics of a reply; lists are left to whoever sent them."""
    records: list[MetricRecord] = list(content.metric_records.values())
    if len(records) != 1:
        raise Rejected("content", f"has {len(records)} metric records, not one")
    return {k: _float(v) for k, v in records[0].items() if isinstance(v, (int, float))}


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of any size passes for a metric inside one process
        return math.inf if value > 0 else -math.inf


def _form(content: RecordDict) -> Hashable:
    """Return what must be alike in all replies for Flower's own strategies to average them."""
    metrics = {
        (key, name): len(value) if isinstance(value, list) else None
        for key, record in content.metric_records.items()
        for name, value in record.items()
    }
    return frozenset(content.array_records), frozenset(metrics.items())
