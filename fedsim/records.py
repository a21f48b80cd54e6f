"""Flower records <-> tensors; zero-copy inside one process.

Everything that crosses the line between server and client is a Flower `Message`. Building one
`Message` with its records costs about as much as a small model's whole local training, so the
strategies and in-process engines pass *lazy sequences* of messages: `Instructions` (server to
clients) and `Replies` (back). Anyone who iterates gets ordinary messages; who asks for the shared
record and the stacked per-client columns gets those, and no message is ever built.

Shapes: K clients of a chunk, `[K, ...]` one row per client.
"""

from __future__ import annotations

import abc
import io
import math
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

Params = dict[str, Tensor]
"""A model (or any named set of tensors): name -> tensor."""

PART_BYTES = 2**22
"""How much of a chunk `Chunk.parts` gives at a time."""

PayloadOf = Callable[[np.ndarray], Params]
"""Client indices `[K]` -> what is sent to these alone, name -> `[K, ...]`."""

Scalar = int | float | str | bool | bytes

ARRAYS, CONFIG, METRICS, CLIENT_ARRAYS = "arrays", "config", "metrics", "client-arrays"
"""Keys of the records in our messages; the first three are those of Flower's own strategies."""

MEMORY = "memory"
"""Key of the record of a client's state that holds what it remembers of earlier rounds."""

ANSWER = "answer"
QUERY = f"query.{ANSWER}"
"""The action, and the message type, of a question to a client; see `fedsim.query`."""

ALIGNMENT = 64
"""Bytes; where PyTorch's CPU tensors begin."""

NUM_EXAMPLES = "num-examples"
"""The metric by which replies are weighted, as in Flower's own strategies."""

BUSY = "busy-seconds"
"""The column of simulated seconds that each reply took its client, where a strategy needs them."""

EVALUATE, RECEIVED = "evaluate", "received-"
"""A key of an instruction to train: score the model as received, on held-out samples, too. The
scores come back among the reply's metrics, under names that begin so."""

WIRE_CHUNK = 16
"""Replies that came as messages are stacked this many at a time. Part of the result: float sums
depend on their grouping, and every engine that moves messages must group alike."""


class TensorArray(Array):
    """A Flower `Array` that holds a tensor, and makes bytes only when somebody asks for them.

    For use inside one process: Flower's wire format names the class, so this one cannot cross a
    wire. Grids that can carry it say so with `zero_copy = True`.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = tensor.detach()

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.tensor.shape)

    @property
    def stype(self) -> str:  # type: ignore[override]
        return "numpy.ndarray"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        return Array.from_numpy_ndarray(self.numpy()).data

    @property
    def tensor(self) -> Tensor:
        """The tensor itself, shared, not to be written to."""
        tensor: Tensor = self.__dict__["tensor"]
        return tensor

    def numpy(self) -> np.ndarray:
        """Return a copy; some of Flower's strategies write into what they receive."""
        array: np.ndarray = self.tensor.cpu().numpy().copy()
        return array

    def plain(self) -> Array:
        """Return the same values as an ordinary `Array`, which can cross a wire."""
        return Array.from_numpy_ndarray(self.numpy())


def to_record(params: Mapping[str, Tensor], *, zero_copy: bool) -> ArrayRecord:
    """Return `params` as an `ArrayRecord`, of `TensorArray`s if `zero_copy`."""
    record = ArrayRecord()
    for name, tensor in params.items():
        array = TensorArray(tensor)
        record[name] = array if zero_copy else array.plain()
    return record


def to_tensors(record: Mapping[str, Array]) -> Params:
    """Return the tensors of an `ArrayRecord`: shared where it holds tensors, decoded elsewhere."""
    return {
        name: array.tensor if isinstance(array, TensorArray) else torch.from_numpy(array.numpy())
        for name, array in record.items()
    }


def aligned(params: Params) -> Params:
    """Return tensors that begin at multiples of `ALIGNMENT` bytes: copies of those that do not.

    PyTorch's own do. What came as bytes, or is a slice of a longer vector, may begin elsewhere, and
    MKL's dot and matrix-vector products round differently there: the same model would not give the
    same bits after a resume, or on another engine.
    """
    return {
        name: tensor if tensor.is_cuda or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
        for name, tensor in params.items()
    }


def decode(array: Array, like: Tensor) -> Tensor:
    """Decode one received `Array`, which must be exactly of `like`'s shape and dtype.

    Nothing is allocated from what the sender claims: the header is compared first, then the bytes
    that did arrive are read in place.

    Raises:
        ValueError: The array differs from what was expected; the message says how.
    """
    if array.stype != "numpy.ndarray":  # who asks the array itself for its values would fail
        raise ValueError(f"is serialised as {array.stype[:40]!r}, not 'numpy.ndarray'")
    if isinstance(array, TensorArray):
        tensor = array.tensor
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(f"is {array.dtype}{list(tensor.shape)}, not {_describe(like)}")
        return tensor
    shape, fortran, dtype, start = _read_header(array.data)
    expected = np.dtype(str(like.dtype).removeprefix("torch."))
    if shape != tuple(like.shape) or dtype != expected:
        raise ValueError(f"is {dtype.str}{list(shape)}, not {_describe(like)}")
    if len(array.data) - start != expected.itemsize * like.numel():
        raise ValueError(f"holds {len(array.data) - start} bytes, not {_describe(like)}")
    flat = np.frombuffer(array.data, dtype, offset=start)
    values = flat.reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(values, order="C")).to(like.device)


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity in a tensor.

    Either survives into the sum: in the usual case this is one pass and takes no memory.
    """
    if bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())  # finite values may have a sum that overflows


def _describe(like: Tensor) -> str:
    return f"{str(like.dtype).removeprefix('torch.')}{list(like.shape)}"


def _read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read the header of `np.save` bytes, bounded to 1 KiB, refusing object arrays."""
    head = io.BytesIO(data[:1024])
    try:
        version = np.lib.format.read_magic(head)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(head)
    except Exception as error:  # NumPy's parser of hostile text fails in ways it does not document
        raise ValueError("is not a NumPy array") from error
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    return tuple(int(n) for n in shape), fortran, dtype, head.tell()


class Instructions(Sequence[Message]):
    """One exchange's messages to clients: what all share, and per-client columns.

    Args:
        message_type: Flower's, e.g. `"train"`.
        server_round: 1, 2, ...
        client_index: Whom to ask; sorted int64 `[K]`.
        node_ids: Where to reach them; `[K]`.
        arrays: The record that every client gets (normally the global model).
        config: Scalars that every client gets; each message adds its own `client-index`.
        client_arrays: Tensors that differ by client, name -> `[K, ...]`; or a function that
            returns them for some client indices, to be asked for a few clients at a time.

    Attributes:
        row_like: What one client's share of these is like, in shapes and dtypes; where they come
            from a function, known once it has been asked.
    """

    def __init__(
        self,
        *,
        message_type: str,
        server_round: int,
        client_index: np.ndarray,
        node_ids: np.ndarray,
        arrays: ArrayRecord,
        config: Mapping[str, Scalar],
        client_arrays: Params | PayloadOf | None = None,
        zero_copy: bool = False,
    ) -> None:
        self.message_type = message_type
        self.server_round = server_round
        self.client_index = client_index
        self.node_ids = node_ids
        self.arrays = arrays
        self.config = {**config, "server-round": server_round}
        self._client_arrays = client_arrays or {}
        self.row_like: Params = {}
        if not callable(self._client_arrays):
            self._note_rows(self._client_arrays)
        self.zero_copy = zero_copy
        self._sent: dict[int, Message] = {}

    def __len__(self) -> int:
        return len(self.client_index)

    def client_arrays(self, part: slice) -> Params | PayloadOf:
        """Return what differs by client, of some of them, or the function that does."""
        if not callable(self._client_arrays):
            return {name: rows[part] for name, rows in self._client_arrays.items()}
        make = self._client_arrays

        def rows_of(clients: np.ndarray) -> Params:
            rows = make(clients)
            if not self.row_like:
                self._note_rows(rows)
            return rows

        return rows_of

    def _note_rows(self, rows: Params) -> None:
        self.row_like = {name: t.new_empty(t.shape[1:], device="meta") for name, t in rows.items()}

    def content(self, client: int, own: Params) -> RecordDict:
        """Return the content of one client's message, `own` being what is sent to it alone."""
        content = RecordDict(
            {
                ARRAYS: self.arrays.copy(),
                CONFIG: ConfigRecord({**self.config, "client-index": client}),
            }
        )
        if own:
            content[CLIENT_ARRAYS] = to_record(own, zero_copy=self.zero_copy)
        return content

    @overload
    def __getitem__(self, item: int) -> Message: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[Message]: ...
    def __getitem__(self, item: int | slice) -> Message | Sequence[Message]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        index = range(len(self))[item]
        if self.zero_copy:
            return self._message(index)
        # A grid with a wire goes through the messages twice, and writes into them in between.
        if index not in self._sent:
            self._sent[index] = self._message(index)
        return self._sent[index]

    def _message(self, index: int) -> Message:
        own = self.client_arrays(slice(index, index + 1))
        own = own(self.client_index[index : index + 1]) if callable(own) else own
        return Message(
            self.content(
                int(self.client_index[index]), {name: rows[0] for name, rows in own.items()}
            ),
            int(self.node_ids[index]),
            self.message_type,
            group_id=str(self.server_round),
        )


class Late(Protocol):
    """K tensors that are made when somebody asks for them; meanwhile, what need not wait."""

    start: Tensor
    """What each was before the local work."""

    def rows(self) -> Tensor:
        """Return them, `[K, ...]`."""

    def weighted_update(self, weights_K: Tensor) -> Tensor:
        """Return Σ_k w_k (W_k − start)."""

    def surely_finite(self) -> Tensor:
        """Return which hold no NaN and no infinity beyond doubt, bool `[K]`."""


class LateRows(dict[str, Tensor]):
    """Stacked arrays, name -> `[K, ...]`, some of which are made when they are first looked at.

    Args:
        names: Of all of them, in order.
        made: Those that are there.
        late: The others.
    """

    def __init__(self, names: Sequence[str], made: Params, late: Mapping[str, Late]) -> None:
        nothing = torch.empty(0)
        super().__init__({name: made.get(name, nothing) for name in names})
        self.late = dict(late)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.late:
            self[name] = self.late[name].rows()
        return super().__getitem__(name)

    def __setitem__(self, name: str, rows: Tensor) -> None:
        self.late.pop(name, None)  # from now on, these may be written into
        super().__setitem__(name, rows)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:  # else `{**rows}` would not ask `__getitem__`
        return super().__iter__()

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        return ItemsView(self)


def late_of(arrays: Mapping[str, Tensor], name: str) -> Late | None:
    """Return an array's rows that are not made yet; None if they are there."""
    return arrays.late.get(name) if isinstance(arrays, LateRows) else None


@dataclass(kw_only=True)
class Chunk:
    """The replies of K clients as stacked columns.

    Valid until the next chunk is drawn: an engine may reuse the memory behind `arrays`.

    Attributes:
        client_index: int64 `[K]`.
        arrays: name -> `[K, ...]`: each client's model after its local work.
        client_arrays: name -> `[K, ...]`: whatever else the client half sends back.
        metrics: name -> float64 `[K]`.
        errors: Client index -> what it said; clients that failed have no row.
        discount: What replies that came late weigh for their age, float64 `[K]`; see `fedsim.pace`.
            None, as for replies to this round, is 1.
    """

    client_index: np.ndarray
    arrays: Params
    client_arrays: Params = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    discount: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.client_index)

    @property
    def num_examples(self) -> np.ndarray:
        """Samples behind each reply, float64 `[K]`."""
        return self.metrics[NUM_EXAMPLES]

    def weights(self, weighting: Literal["examples", "uniform"]) -> np.ndarray:
        """Return the replies' weights in a mean, by samples or all equal, float64 `[K]`.

        Those of kept replies are less for their age: their numbers of samples are so already.
        """
        if weighting == "examples":
            return self.num_examples
        return np.ones(len(self)) if self.discount is None else self.discount

    def parts(self) -> Iterator[Chunk]:
        """Yield a few rows at a time (views, no copies), so that what is made of them is small.

        Temporary tensors then stay in the cache, where those of a whole chunk would be new memory.
        """
        size = max(1, sum(t[0].nbytes for t in self.arrays.values()))
        step = max(1, PART_BYTES // size)
        if step >= len(self):
            yield self
            return
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield Chunk(
                client_index=self.client_index[part],
                arrays={name: t[part] for name, t in self.arrays.items()},
                client_arrays={name: t[part] for name, t in self.client_arrays.items()},
                metrics={name: column[part] for name, column in self.metrics.items()},
                discount=None if self.discount is None else self.discount[part],
            )

    def rows(self, keep: np.ndarray) -> Chunk:
        """Return the rows where `keep` (bool `[K]`) holds; the chunk itself if all do."""
        if keep.all():
            return self
        index = torch.from_numpy(np.flatnonzero(keep))
        return Chunk(
            client_index=self.client_index[keep],
            arrays={name: t[index.to(t.device)] for name, t in self.arrays.items()},
            client_arrays={name: t[index.to(t.device)] for name, t in self.client_arrays.items()},
            metrics={name: column[keep] for name, column in self.metrics.items()},
            discount=None if self.discount is None else self.discount[keep],
        )


class Replies(Iterable[Message], abc.ABC):
    """One exchange's replies, computed or received as they are drawn; drawn once."""

    @property
    def num_faulty(self) -> int:
        """How many of those asked have sent nothing but what was rejected; known once drawn."""
        return 0

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Message]:
        """Yield the replies as ordinary messages, in client-index order."""

    @abc.abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield the replies as stacked chunks; each client is in exactly one of them."""


def stack(replies: Replies) -> Chunk | None:
    """Return all replies as one chunk in client-index order, or None if there are none.

    For rules that need every update at once (medians, Gram matrices); a copy where the engine
    made more than one chunk. Prefer `Replies.chunks`, which holds one chunk at a time.
    """
    parts: list[Chunk] = []
    errors: dict[int, str] = {}
    for chunk in replies.chunks():
        errors |= chunk.errors
        if len(chunk):
            arrays = {name: t.clone() for name, t in chunk.arrays.items()}
            extra = {name: t.clone() for name, t in chunk.client_arrays.items()}
            parts.append(replace(chunk, arrays=arrays, client_arrays=extra))
    if not parts:
        nobody = np.arange(0)
        return Chunk(client_index=nobody, arrays={}, errors=errors) if errors else None
    client_index = np.concatenate([part.client_index for part in parts])
    order = np.argsort(client_index)
    first, rows = parts[0], torch.from_numpy(order)

    def joined(columns: list[Params]) -> Params:
        return {
            name: torch.cat([column[name] for column in columns])[rows.to(tensor.device)]
            for name, tensor in columns[0].items()
        }

    return Chunk(
        client_index=client_index[order],
        arrays=joined([part.arrays for part in parts]),
        client_arrays=joined([part.client_arrays for part in parts]),
        metrics={
            name: np.concatenate([part.metrics[name] for part in parts])[order]
            for name in first.metrics
            if all(name in part.metrics for part in parts)
        },
        errors=errors,
    )


def stack_replies(replies: Sequence[tuple[int, Params, Params, Mapping[str, float]]]) -> Chunk:
    """Stack decoded replies (client index, arrays, client arrays, metrics) into one chunk."""
    names = set.intersection(*(set(metrics) for _, _, _, metrics in replies))
    return Chunk(
        client_index=np.array([client for client, *_ in replies], np.int64),
        arrays={
            name: torch.stack([arrays[name] for _, arrays, _, _ in replies])
            for name in replies[0][1]
        },
        client_arrays={
            name: torch.stack([extra[name] for _, _, extra, _ in replies]) for name in replies[0][2]
        },
        metrics={
            name: np.array([metrics[name] for *_, metrics in replies], np.float64)
            for name in replies[0][3]
            if name in names
        },
    )


def reply_content(
    arrays: Mapping[str, Tensor] | None,
    metrics: Mapping[str, float],
    client_arrays: Mapping[str, Tensor] | None = None,
    *,
    zero_copy: bool,
) -> RecordDict:
    """Make the content of one client's reply."""
    content = RecordDict({METRICS: MetricRecord(dict(metrics))})
    if arrays is not None:
        content[ARRAYS] = to_record(arrays, zero_copy=zero_copy)
    if client_arrays:
        content[CLIENT_ARRAYS] = to_record(client_arrays, zero_copy=zero_copy)
    return content


class UpdateSum:
    """Σ w_k · (W_k − x) over replies, one chunk at a time, accumulated in float64.

    The differences are taken before anything is summed: they are small beside the weights, and a
    tensor that no client changed stays exactly as it is.

    Args:
        params: x, the global model; gives names, shapes, dtypes and the device of the result.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.params = params
        self.sums = {
            name: torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            for name, x in params.items()
        }
        self.weight = 0.0
        self.count = 0

    def add(self, arrays: Mapping[str, Tensor], weights: np.ndarray) -> None:
        """Add K rows; `weights` is float64 `[K]`, `arrays[name]` is `[K, ...]`."""
        scale = _scale(weights)
        for name, x in self.params.items():
            late = late_of(arrays, name)
            if late is None or late.start.data_ptr() != x.data_ptr():
                self._add(name, x, arrays[name], weights, scale)
                continue
            weights_K = torch.from_numpy(weights / scale).to(x.device, x.dtype)
            self.sums[name].add_(late.weighted_update(weights_K), alpha=scale)
        self._count(weights)

    def add_updates(self, arrays: Mapping[str, Tensor], weights: np.ndarray) -> Params:
        """Do as `add`, and return the updates W_k − x, `[K, ...]`, for who wants more of them."""
        scale, updates = _scale(weights), {}
        for name, x in self.params.items():
            rows = self._add(name, x, arrays[name], weights, scale)
            updates[name] = rows.view_as(arrays[name])
        self._count(weights)
        return updates

    def _add(self, name: str, x: Tensor, rows: Tensor, weights: np.ndarray, scale: float) -> Tensor:
        rows = rows.reshape(len(weights), x.numel())
        rows = rows if rows.is_floating_point() else rows.double()
        updates = rows - x.flatten().to(rows.dtype)
        weights_K = torch.from_numpy(weights / scale).to(rows.device, rows.dtype)
        self.sums[name].add_((weights_K @ updates).view(x.shape), alpha=scale)
        return updates

    def _count(self, weights: np.ndarray) -> None:
        self.weight += float(weights.sum())
        self.count += len(weights)

    def step(self, scale: float) -> Params:
        """Return x + scale · Σ w_k (W_k − x), in the dtypes of the model; integers are rounded."""
        return moved(self.params, self.sums, scale)

    def mean(self, scale: float) -> Params:
        """Return x + scale · Σ w_k (W_k − x) / Σ w_k; x itself if nothing was added."""
        return self.step(scale / self.weight) if self.count else dict(self.params)


def _scale(weights: np.ndarray) -> float:
    """Return a power of two by which weights are divided so that they sum to at most 1.

    Of such weights, no sum of finite float32 rows overflows; dividing by a power of two changes no
    other bit of it.
    """
    return math.ldexp(1.0, math.frexp(float(np.abs(weights).sum()))[1])


def moved(params: Mapping[str, Tensor], update: Mapping[str, Tensor], scale: float) -> Params:
    """Return params + scale · update in the dtypes of `params`; `update` is float64.

    Integers are rounded.
    """
    result = {}
    for name, x in params.items():
        there = x + scale * update[name]
        result[name] = (there if x.is_floating_point() else there.round()).to(x.dtype)
    return result
