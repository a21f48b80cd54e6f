"""Random replies are admitted or rejected; nothing crashes, nothing that is not finite gets in.

`FEDSIM_FUZZ` sets the number of examples per test (200 by default, 300 in CI).
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.admission import Admission, ClientError
from fedsim.records import (
    NUM_EXAMPLES,
    Chunk,
    Instructions,
    TensorArray,
    decode,
    stack,
    to_record,
)
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from tests.faults._bad import Bomb
from tests.strategies._toy import (
    Stacked,
    ToyGrid,
    everyone,
    failing,
    finish,
    loop,
    quadratic,
    reply,
)

EXAMPLES = int(os.environ.get("FEDSIM_FUZZ", "200"))
FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PARAMS = {"x": torch.tensor([1.0, 2.0]), "w": torch.zeros(2, 3)}
NODES = {0: 10, 1: 2**63 + 1, 2: 2**64 - 1}
"""Client index -> node id."""

# --- what a hostile or broken client may send -------------------------------------------------

DTYPES = ["<f4", ">f4", "<f2", "<f8", "<i8", "<u1", "|b1", "<c8", "<U3", "|S2", "<M8[s]", "|V4"]
SHAPES = [(), (0,), (1,), (2,), (3,), (2, 1), (2, 3), (1, 2, 3), (3, 2), (2, 0)]
SPECIAL = [0.0, -0.0, 1.0, -1e30, 3.4e38, 1e-45, float("nan"), float("inf"), -float("inf")]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats())
INTS = st.one_of(st.integers(-5, 10**8), st.sampled_from([2**63, 2**64 - 1, -(2**63), 10**400]))


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def as_array(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> Array:
    return Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)


def npy(header: bytes, payload: bytes, version: int) -> bytes:
    width = 2 if version == 1 else 4
    size = (len(header) % 2**16).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + payload


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A saved array after some edits: most of them in its header."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    data = bytearray(saved(np.zeros(shape, dtype)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "remove"]))
        if kind == "flip" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif kind == "repeat":
            data[place:place] = data[place : place + 8]
        else:
            del data[place : place + 3]
    return bytes(data)


PIECES = st.sampled_from(
    [
        *("{", "}", "(", ")", "[", "]", ",", ":", "'", '"', "\n", " ", "\x00", "\\", "#", "-", "L"),
        *("'descr'", "'fortran_order'", "'shape'", "'<f4'", "'|O'", "False", "True", "None"),
        *("(2,)", "()", "(2, 3)", "99999999999", "-1", "1e9", "2**9", "[('a', '<f4')]"),
        *("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "'<f4,<f4'", "'99V'"),
    ]
)
HEADERS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.builds("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}".format, PIECES, PIECES, PIECES),
    st.text(max_size=40),
    st.builds(lambda piece, n: piece * n, PIECES, st.integers(1, 900)),
).map(lambda text: text.encode("utf-8", "replace"))

BYTES = st.one_of(
    st.binary(max_size=300),
    mutated(),
    st.builds(npy, HEADERS, st.binary(max_size=16), st.sampled_from([1, 2, 3, 0, 255])),
)
GOOD = st.sampled_from([Array(t.numpy()) for t in PARAMS.values()])
ARRAYS = st.one_of(
    GOOD,
    st.builds(as_array, BYTES, st.sampled_from(["float32", "object", "", "int4"])),
    st.builds(
        lambda shape, dtype: as_array(saved(np.zeros(shape, dtype)), dtype, shape),
        st.sampled_from(SHAPES),
        st.sampled_from(DTYPES),
    ),
    st.builds(
        lambda values: as_array(saved(torch.tensor(values).float().numpy())),
        st.lists(FLOATS, min_size=2, max_size=2),
    ),
    st.builds(
        lambda shape, dtype: TensorArray(torch.zeros(shape).to(dtype)),
        st.sampled_from(SHAPES),
        st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64]),
    ),
    st.builds(lambda array: _of_kind(array, "torch"), GOOD),
)


def _of_kind(array: Array, stype: str) -> Array:
    return Array(dtype=array.dtype, shape=array.shape, stype=stype, data=array.data)


ARRAY_RECORDS = st.dictionaries(st.sampled_from(["x", "w", "y", ""]), ARRAYS, max_size=3).map(
    ArrayRecord
)
SCALARS = st.one_of(INTS, FLOATS)
METRIC_NAMES = st.sampled_from([NUM_EXAMPLES, "train-loss", "other", ""])
METRIC_RECORDS = st.dictionaries(
    METRIC_NAMES,
    st.one_of(SCALARS, st.lists(INTS, max_size=3), st.lists(FLOATS, max_size=3)),
    max_size=3,
).map(MetricRecord)
CONFIG_RECORDS = st.dictionaries(
    st.text(max_size=3), st.one_of(st.booleans(), st.binary(max_size=3), INTS), max_size=2
).map(ConfigRecord)
RECORDS = st.one_of(ARRAY_RECORDS, METRIC_RECORDS, CONFIG_RECORDS)
KEYS = st.sampled_from(["arrays", "metrics", "client-arrays", "config", "more", ""])


@st.composite
def contents(draw: st.DrawFn) -> RecordDict:
    """Anything at all, or a good reply after a few edits."""
    if draw(st.booleans()):
        return RecordDict(draw(st.dictionaries(KEYS, RECORDS, max_size=4)))
    arrays = ArrayRecord({name: Array(t.numpy()) for name, t in PARAMS.items()})
    content = RecordDict(
        {"arrays": arrays, "metrics": MetricRecord({NUM_EXAMPLES: 1, "train-loss": 1.0})}
    )
    for _ in range(draw(st.integers(0, 3))):
        edit = draw(st.sampled_from(["record", "drop record", "array", "drop array", "metric"]))
        if edit == "record":
            content[draw(KEYS)] = draw(RECORDS)
        elif edit == "drop record" and content:
            del content[draw(st.sampled_from(sorted(content)))]
        elif edit == "array":
            arrays[draw(st.sampled_from(["x", "w", "y"]))] = draw(ARRAYS)
        elif edit == "drop array" and arrays:
            del arrays[draw(st.sampled_from(sorted(arrays)))]
        elif edit == "metric" and "metrics" in content:
            record = content["metrics"]
            if isinstance(record, MetricRecord):
                record[draw(METRIC_NAMES)] = draw(SCALARS)
    return content


@st.composite
def replies(draw: st.DrawFn, sent: Instructions) -> list[Message]:
    """Up to six replies, to any of the messages or to none of them."""
    result = []
    for _ in range(draw(st.integers(0, 6))):
        message = sent[draw(st.integers(0, 2))]
        node = message.metadata.dst_node_id
        if draw(st.integers(0, 5)) == 0:
            node = draw(st.sampled_from([0, 1, 9, 10, 2**63, 2**64 - 1]))
        group = draw(st.sampled_from(["1", "1", "1", "0", "2", "", "one"]))
        message = Message(message.content, node, "train", group_id=group)
        kind = draw(st.sampled_from(["content", "content", "content", "error", "neither"]))
        if kind == "error":
            result.append(failing(message, draw(st.text(max_size=5))))
            continue
        result.append(Message(draw(contents()), reply_to=message))
        if kind == "neither":
            result[-1].__dict__["_content"] = None
    return result


def instructions() -> Instructions:
    return Instructions(
        message_type="train",
        server_round=1,
        client_index=np.arange(3),
        node_ids=np.array(list(NODES.values()), np.uint64),
        arrays=to_record(PARAMS, zero_copy=False),
        config={},
    )


# --- properties --------------------------------------------------------------------------------


@FAST
@given(BYTES)
def test_any_bytes_are_decoded_exactly_or_refused(data: bytes) -> None:
    like = PARAMS["x"]
    try:
        tensor = decode(as_array(data), like)
    except ValueError:
        return
    expected = np.load(io.BytesIO(data), allow_pickle=False)  # what it lets through, NumPy reads
    assert tensor.shape == like.shape
    assert tensor.dtype == like.dtype
    np.testing.assert_array_equal(tensor.numpy(), expected)


@FAST
@given(st.data())
def test_any_replies_are_admitted_or_rejected(data: st.DataObject) -> None:
    sent = instructions()
    received = data.draw(replies(sent))
    rules = Admission()
    for draw in (lambda a: stack(a), lambda a: list(a)):
        admitted = rules.admit(sent, received, PARAMS)
        try:
            drawn = draw(admitted)
        except ClientError as error:  # all of them errors
            assert "every client failed" in str(error)
            assert set(admitted.rejected) == {"error"}
            drawn = []
        assert len(admitted.admitted) + sum(admitted.rejected.values()) == len(received)
        assert len(set(admitted.admitted)) == len(admitted.admitted)
        assert set(admitted.admitted) <= set(NODES)
        assert len(drawn or []) == len(admitted.admitted)
        assert len(admitted.details) == min(5, sum(admitted.rejected.values()))
        if isinstance(drawn, Chunk):
            for name, like in PARAMS.items():
                assert drawn.arrays[name].dtype == like.dtype
                assert drawn.arrays[name].shape == (len(drawn), *like.shape)
                assert torch.isfinite(drawn.arrays[name]).all()
            assert all(0 < w <= rules.max_examples for w in drawn.num_examples)
        assert all(np.isfinite(column).all() for column in admitted.metrics.values())
        admitted.mean_metrics(), admitted.per_client()


@FAST
@given(contents())
def test_an_evaluation_takes_any_reply(content: RecordDict) -> None:
    sent = instructions()
    received = [Message(content, reply_to=sent[0])]
    admitted = Admission().admit(sent, received, None)
    list(admitted.chunks())
    assert all(np.isfinite(value) for value in admitted.mean_metrics().values())


@pytest.mark.parametrize("make", [FedAvg, FedAU, FlowerFedAvg])
@settings(FAST, max_examples=max(10, EXAMPLES // 4))
@given(data=st.data())
def test_a_round_with_one_hostile_client_of_four(make, data: st.DataObject) -> None:
    """No strategy crashes, and the honest clients' replies are used."""
    hostile = data.draw(contents())

    def answer(message: Message) -> list[Message]:
        client = grid.client_index(message.metadata.dst_node_id)
        if client == 2:
            return [Message(hostile, reply_to=message)]
        return [quadratic(message, centre=float(client))]

    grid = ToyGrid(4, answer)
    before = Bomb.exploded
    params, (report,) = finish(loop(make(), grid, everyone(4), rounds=1), PARAMS)
    assert {0, 1, 3} <= set(report.admitted)
    assert len(report.admitted) + sum(report.rejected.values()) == 4
    assert all(torch.isfinite(tensor).all() for tensor in params.values())
    assert Bomb.exploded == before


@FAST
@given(
    weights=st.lists(FLOATS, min_size=3, max_size=3),
    losses=st.lists(FLOATS, min_size=3, max_size=3),
    values=st.lists(FLOATS, min_size=6, max_size=6),
)
def test_any_stacked_chunk_leaves_the_model_finite(weights, losses, values) -> None:
    rows = torch.tensor(values, dtype=torch.float64).float().reshape(3, 2)
    metrics = {NUM_EXAMPLES: np.array(weights), "train-loss": np.array(losses)}
    chunk = Chunk(client_index=np.arange(3), arrays={"x": rows}, metrics=metrics)
    params = {"x": torch.tensor([1.0, 2.0])}
    admitted = Admission().admit([], Stacked(chunk), params)
    for good in admitted.chunks():
        assert torch.isfinite(good.arrays["x"]).all()
        assert np.isfinite(good.num_examples).all()
        assert (good.num_examples > 0).all()
    assert len(admitted.admitted) + sum(admitted.rejected.values()) == 3


# --- memory -----------------------------------------------------------------------------------

MB = 2**20
HIGH_WATER = Path("/proc/self/clear_refs")
linux = pytest.mark.skipif(not HIGH_WATER.exists(), reason="reads Linux's high-water mark")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def growth(action) -> int:
    """Bytes by which the process's memory grows, at its highest, while `action` runs."""
    HIGH_WATER.write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    action()
    return status("VmHWM") - before


@linux
def test_an_array_of_64_mb_is_refused_before_it_is_decoded() -> None:
    payload = saved(np.ones(16 * MB, np.float32))
    sent = instructions()
    record = ArrayRecord({"x": as_array(payload), "w": Array(PARAMS["w"].numpy())})
    received = [reply(sent[0], record)]
    admitted = Admission().admit(sent, received, PARAMS)
    assert growth(lambda: list(admitted.chunks())) < 2 * MB
    assert dict(admitted.rejected) == {"content": 1}


@linux
def test_a_claimed_terabyte_costs_nothing() -> None:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }"
    sent = instructions()
    record = ArrayRecord({"x": as_array(npy(text, b"", 1)), "w": Array(PARAMS["w"].numpy())})
    admitted = Admission().admit(sent, [reply(sent[0], record)], PARAMS)
    assert growth(lambda: list(admitted.chunks())) < 2 * MB
    assert dict(admitted.rejected) == {"content": 1}


@linux
def test_a_good_reply_of_64_mb_takes_at_most_three_times_as_much() -> None:
    params = {"x": torch.ones(16 * MB)}
    sent = Instructions(
        message_type="train",
        server_round=1,
        client_index=np.arange(1),
        node_ids=np.arange(1) + 10,
        arrays=to_record(params, zero_copy=True),
        config={},
    )
    received = [reply(sent[0], ArrayRecord({"x": as_array(saved(np.ones(16 * MB, np.float32)))}))]
    admitted = Admission().admit(sent, received, params)
    sizes = []
    extra = growth(lambda: sizes.extend(len(chunk) for chunk in admitted.chunks()))
    assert sizes == [1]
    assert 64 * MB + extra <= 3 * 64 * MB + 4 * MB
