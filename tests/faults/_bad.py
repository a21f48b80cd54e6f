"""Bad replies, one function each: an instruction in, what a faulty client sends back out.

Each is named by the reason that admission must count it under.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fedsim.records import NUM_EXAMPLES, TensorArray, to_tensors
from tests.strategies._toy import failing, model_record, reply


def record_of(message: Message) -> ArrayRecord:
    return model_record(message)


def with_x(message: Message, value: Array | np.ndarray) -> Message:
    """Answer with the model, its array 'x' replaced."""
    record = record_of(message).copy()
    record["x"] = value if isinstance(value, Array) else Array(value)
    return reply(message, record)


def x_of(message: Message) -> np.ndarray:
    return to_tensors(record_of(message))["x"].numpy()


def raw(data: bytes, like: np.ndarray) -> Array:
    return Array(dtype=str(like.dtype), shape=like.shape, stype="numpy.ndarray", data=data)


def pickled(like: np.ndarray) -> Array:
    """An object array, whose elements would be unpickled by a careless reader."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()] * like.size, object), allow_pickle=True)
    return raw(buffer.getvalue(), like)


class Bomb:
    """Counts how often it was unpickled."""

    exploded = 0

    def __reduce__(self):
        return explode, ()


def explode() -> None:
    Bomb.exploded += 1


def poisoned(value: float):
    def answer(message: Message) -> list[Message]:
        x = x_of(message).copy()
        x[-1] = value
        return [with_x(message, x)]

    return answer


def weighing(examples: object):
    return lambda message: [reply(message, metrics=MetricRecord({NUM_EXAMPLES: examples}))]


def arrays_of(change):
    """Answer with the model's record after `change(record)`."""

    def answer(message: Message) -> list[Message]:
        record = record_of(message).copy()
        change(record)
        return [reply(message, record)]

    return answer


def content_of(change):
    """Answer with a reply whose content was changed by `change(content)`."""

    def answer(message: Message) -> list[Message]:
        good = reply(message)
        change(good.content)
        return [good]

    return answer


def rename(record: ArrayRecord) -> None:
    record["y"] = record.pop("x")


def from_node(node: int):
    """A good reply, but from a node that was not asked."""

    def answer(message: Message) -> list[Message]:
        stranger = Message(message.content, node, "train", group_id=message.metadata.group_id)
        return [reply(stranger)]

    return answer


def of_round(group: str):
    """A good reply to another round's message."""

    def answer(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        return [reply(Message(message.content, node, "train", group_id=group))]

    return answer


def neither(message: Message) -> list[Message]:
    empty = reply(message)
    empty.__dict__["_content"] = None
    return [empty]


def without_reason(message: Message) -> list[Message]:
    error = failing(message)
    error.error.__dict__["_reason"] = None
    return [error]


def truncated(message: Message) -> list[Message]:
    array = Array(x_of(message))
    return [with_x(message, raw(array.data[:-3], x_of(message)))]


def header_only(message: Message, shape: str) -> list[Message]:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
    return [with_x(message, raw(data, x_of(message)))]


BAD = {
    "error": {
        "raised": lambda m: [failing(m)],
        "no reason given": without_reason,
    },
    "unknown": {
        "unknown node": from_node(999_999),
        "node id of 64 bits": from_node(2**64 - 1),
    },
    "content": {
        "neither content nor error": neither,
        "no records": content_of(lambda c: (c.pop("arrays"), c.pop("metrics"))),
        "no model record": content_of(lambda c: c.pop("arrays")),
        "two model records": content_of(lambda c: c.__setitem__("more", c["arrays"].copy())),
        "no metric record": content_of(lambda c: c.pop("metrics")),
        "two metric records": content_of(lambda c: c.__setitem__("m", c["metrics"].copy())),
        "config for a model": content_of(lambda c: c.__setitem__("arrays", ConfigRecord())),
        "unasked client arrays": content_of(
            lambda c: c.__setitem__("client-arrays", c["arrays"].copy())
        ),
        "extra array": arrays_of(lambda r: r.__setitem__("more", Array(np.zeros(2)))),
        "missing array": arrays_of(lambda r: r.pop("x")),
        "renamed array": arrays_of(rename),
        "empty model": arrays_of(lambda r: r.clear()),
        "float16": lambda m: [with_x(m, x_of(m).astype(np.float16))],
        "float64": lambda m: [with_x(m, x_of(m).astype(np.float64))],
        "integers": lambda m: [with_x(m, x_of(m).astype(np.int32))],
        "wrong byte order": lambda m: [with_x(m, x_of(m).astype(">f4"))],
        "broadcastable (1,)": lambda m: [with_x(m, x_of(m)[:1])],
        "broadcastable ()": lambda m: [with_x(m, np.array(x_of(m)[0]))],
        "extra axis": lambda m: [with_x(m, x_of(m)[:, None])],
        "objects": lambda m: [with_x(m, pickled(x_of(m)))],
        "truncated": truncated,
        "empty bytes": lambda m: [with_x(m, raw(b"", x_of(m)))],
        "not npy": lambda m: [with_x(m, raw(b"PK\x03\x04" + bytes(200), x_of(m)))],
        "claims a terabyte": lambda m: header_only(m, "(274877906944,)"),
        "claims 2**80": lambda m: header_only(m, f"({2**80},)"),
        "negative shape": lambda m: header_only(m, "(-2,)"),
        "tensor of another type": lambda m: [with_x(m, TensorArray(torch.zeros(2).double()))],
        "serialised otherwise": lambda m: [
            with_x(m, Array("float32", (2,), "torch", Array(x_of(m)).data))
        ],
    },
    "weight": {
        "zero": weighing(0),
        "zero as a float": weighing(0.0),
        "negative": weighing(-80),
        "1e12": weighing(10**12),
        "one over the cap": weighing(10_000_001),
        "huge int": weighing(10**400),
        "NaN": weighing(float("nan")),
        "infinite": weighing(float("inf")),
        "a list": weighing([1, 2]),
        "an empty list": weighing([]),
        "missing": content_of(lambda c: c["metrics"].pop(NUM_EXAMPLES)),
        "empty metrics": content_of(lambda c: c.__setitem__("metrics", MetricRecord())),
    },
    "non-finite": {
        "NaN": poisoned(np.nan),
        "infinity": poisoned(np.inf),
        "minus infinity": poisoned(-np.inf),
        "NaN metric": content_of(lambda c: c["metrics"].__setitem__("train-loss", np.nan)),
        "infinite metric": content_of(lambda c: c["metrics"].__setitem__("train-loss", 10**400)),
    },
    "stale": {
        "last round": of_round("1"),
        "next round": of_round("3"),
        "no round": of_round(""),
        "round in other words": of_round("02"),
    },
    "duplicate": {
        "twice": lambda m: [reply(m), reply(m)],
        "bad after good": lambda m: [reply(m), *poisoned(np.nan)(m)],
    },
}
"""reason -> fault -> answer. A duplicate comes with one good reply; the others with none."""

CASES = [(reason, name) for reason, faults in BAD.items() for name in faults]
