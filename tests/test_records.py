"""Records <-> tensors: what is shared, what is decoded, what is refused, what is added up."""

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim.records import (
    Chunk,
    Instructions,
    TensorArray,
    UpdateSum,
    aligned,
    decode,
    reply_content,
    stack,
    stack_replies,
    to_record,
    to_tensors,
)
from tests.strategies._toy import Stacked, equal, make_run, model

make_run()

DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (2, 0, 3)]


def some(dtype, shape):
    size = int(np.prod(shape))
    return (torch.arange(size) % 3).reshape(shape).to(dtype)


def npy(array, **changes):
    buffer = io.BytesIO()
    np.save(buffer, array)
    fields = {"dtype": str(array.dtype), "shape": array.shape, "stype": "numpy.ndarray"}
    return Array(**{**fields, "data": buffer.getvalue(), **changes})


def header(text, payload=b"", version=(1, 0)):
    """An array whose `np.save` header is `text`."""
    width = 2 if version == (1, 0) else 4
    data = b"\x93NUMPY" + bytes(version) + len(text).to_bytes(width, "little") + text + payload
    return Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=data)


# --- tensors in records ----------------------------------------------------------------------


@pytest.mark.parametrize("zero_copy", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(dtype, shape, zero_copy):
    params = {"w": some(dtype, shape)}
    record = to_record(params, zero_copy=zero_copy)
    assert equal(to_tensors(record), params)
    assert torch.equal(decode(record["w"], params["w"]), params["w"])
    assert decode(record["w"], params["w"]).dtype == dtype


def test_a_tensor_array_is_an_array():
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    array, plain = TensorArray(tensor), Array(tensor.numpy())
    for name in ("dtype", "shape", "stype", "data"):
        assert getattr(array, name) == getattr(plain, name)
    assert array.tensor.data_ptr() == tensor.data_ptr()
    assert array.plain() == plain
    array.numpy()[:] = 7  # some of Flower's strategies write into what they receive
    assert tensor[0, 0] == 1.0


def test_a_tensor_array_forgets_the_graph():
    weight = torch.ones(2, requires_grad=True)
    assert not TensorArray(weight * 2).tensor.requires_grad


def test_zero_copy_shares_and_plain_records_do_not():
    params = model(1.0, 2.0)
    shared, apart = (to_record(params, zero_copy=flag) for flag in (True, False))
    params["x"][0] = 9
    assert to_tensors(shared)["x"][0] == 9
    assert to_tensors(apart)["x"][0] == 1


def test_non_contiguous_tensors_keep_their_values():
    params = {"w": torch.arange(6.0).reshape(2, 3).T}
    assert to_tensors(to_record(params, zero_copy=False))["w"].tolist() == params["w"].tolist()


def test_decode_does_not_share_the_sender_s_bytes():
    array = npy(np.zeros(3, np.float32))
    tensor = decode(array, torch.zeros(3))
    tensor[0] = 1
    assert decode(array, torch.zeros(3))[0] == 0


def test_decode_reads_fortran_order():
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert decode(npy(values), torch.zeros(2, 3)).tolist() == values.tolist()


def test_decode_reads_version_two_of_the_format():
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
    array = header(text, np.array([1, 2], "<f4").tobytes(), version=(2, 0))
    assert decode(array, torch.zeros(2)).tolist() == [1.0, 2.0]


LIKE = torch.zeros(2)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (npy(np.zeros(2, np.float16)), r"<f2\[2\], not float32\[2\]"),
        (npy(np.zeros(2, np.float64)), r"<f8\[2\]"),
        (npy(np.zeros(2, ">f4")), r">f4\[2\]"),
        (npy(np.zeros(2, np.int32)), r"<i4\[2\]"),
        (npy(np.zeros(2, np.complex64)), r"<c8\[2\]"),
        (npy(np.zeros(2, "datetime64[s]")), r"<M8\[s\]"),
        (npy(np.zeros(2, "U1")), r"<U1"),
        (npy(np.zeros(2, [("a", "f4")])), r"\[2\], not float32"),
        (npy(np.zeros(1, np.float32)), r"\[1\], not float32\[2\]"),
        (npy(np.float32(0)), r"\[\], not float32\[2\]"),
        (npy(np.zeros((2, 1), np.float32)), r"\[2, 1\]"),
        (npy(np.array([1, "a"], object)), "holds Python objects"),
        (npy(np.zeros(2, np.float32), stype="torch.tensor"), "serialised as 'torch.tensor'"),
        (npy(np.zeros(2, np.float32), data=b""), "not a NumPy array"),
        (npy(np.zeros(2, np.float32), data=b"\x93NUMPY"), "not a NumPy array"),
        (npy(np.zeros(2, np.float32), data=bytes(1000)), "not a NumPy array"),
        (npy(np.zeros(2, np.float32), data=b"\x80\x04\x95"), "not a NumPy array"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"), "holds 0 bytes"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(7)), "7 bytes"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(9)), "9 bytes"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}"), "99999999"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"), r"\[-2\]"),
        (header(b"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", bytes(16)), "objects"),
        (header(b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}"), "objects"),
        (header(b"{'descr': (), 'fortran_order': False, 'shape': (2,)}"), "not a NumPy array"),
        (header(b"{'descr': ',', 'fortran_order': False, 'shape': (2,)}"), "not a NumPy array"),
        (header(b"{'descr': '<f4', ("), "not a NumPy array"),
        (header(b"'''"), "not a NumPy array"),
        (header(b"(" * 190), "not a NumPy array"),
        (header(b"-" * 900 + b"1"), "not a NumPy array"),
        (header(b"{[]: 1}"), "not a NumPy array"),
        (header(b"__import__('os').abort()"), "not a NumPy array"),
        (header(b" " * 2000 + b"{}"), "not a NumPy array"),
        (header(b"{}", version=(3, 0)), "not a NumPy array"),
        (header(b"{}", version=(9, 9)), "not a NumPy array"),
        (TensorArray(torch.zeros(2, dtype=torch.float64)), r"float64\[2\], not float32\[2\]"),
        (TensorArray(torch.zeros(1)), r"float32\[1\], not float32\[2\]"),
    ],
)
def test_decode_refuses(array, why):
    with pytest.raises(ValueError, match=why):
        decode(array, LIKE)


# --- instructions ----------------------------------------------------------------------------


def instructions(**changes):
    fields = {
        "message_type": "train",
        "server_round": 3,
        "client_index": np.array([2, 5]),
        "node_ids": np.array([2**63 + 2, 2**64 - 1], np.uint64),
        "arrays": to_record(model(1.0), zero_copy=False),
        "config": {"lr": 0.5},
    }
    return Instructions(**{**fields, **changes})


def test_instructions_are_messages_to_whoever_iterates():
    rows = torch.tensor([[10.0], [20.0]])
    sent = instructions(client_arrays={"c": rows})
    assert len(sent) == 2
    for message, client, node, own in zip(sent, (2, 5), (2**63 + 2, 2**64 - 1), rows, strict=True):
        assert isinstance(message, Message)
        assert message.metadata.dst_node_id == node
        assert message.metadata.group_id == "3"
        assert message.metadata.message_type == "train"
        expected = {"lr": 0.5, "server-round": 3, "client-index": client}
        assert dict(message.content["config"]) == expected
        assert to_tensors(message.content["arrays"])["x"].tolist() == [1.0]
        assert to_tensors(message.content["client-arrays"])["c"].tolist() == own.tolist()
    assert [m.metadata.dst_node_id for m in sent[0:1]] == [2**63 + 2]
    assert sent[-1].metadata.dst_node_id == 2**64 - 1
    with pytest.raises(IndexError):
        sent[2]


def test_clients_do_not_share_their_config():
    """Flower's own strategies put one record object into all messages."""
    first, second = instructions()
    first.content["config"]["lr"] = 9.0
    first.content["arrays"].pop("x")
    assert second.content["config"]["lr"] == 0.5
    assert "x" in second.content["arrays"]


def test_a_wire_sees_the_same_messages_twice():
    """Flower's `HttpGrid` notes an id in each message, and then goes through them again."""
    sent = instructions()
    assert all(a is b for a, b in zip(sent, sent, strict=True))
    in_memory = instructions(zero_copy=True)
    assert in_memory[0] is not in_memory[0]  # nothing is kept where nobody needs it


def test_reply_content():
    content = reply_content(model(1.0), {"a": 1.0}, {"c": torch.zeros(1)}, zero_copy=True)
    assert set(content) == {"arrays", "metrics", "client-arrays"}
    assert isinstance(content["arrays"]["x"], TensorArray)
    assert set(reply_content(None, {}, zero_copy=False)) == {"metrics"}


# --- chunks ----------------------------------------------------------------------------------


def labelled(clients, **metrics):
    rows = torch.tensor(clients, dtype=torch.float32)[:, None]
    return Chunk(
        client_index=np.array(clients),
        arrays={"x": rows},
        client_arrays={"c": 10 * rows},
        metrics={name: np.array(column) for name, column in metrics.items()},
    )


def test_rows_of_a_chunk():
    chunk = labelled([4, 7, 9], loss=[0.4, 0.7, 0.9])
    assert chunk.rows(np.ones(3, bool)) is chunk
    kept = chunk.rows(np.array([True, False, True]))
    assert kept.client_index.tolist() == [4, 9]
    assert kept.arrays["x"].tolist() == [[4], [9]]
    assert kept.client_arrays["c"].tolist() == [[40], [90]]
    assert kept.metrics["loss"].tolist() == [0.4, 0.9]
    assert len(chunk.rows(np.zeros(3, bool))) == 0


def test_stack_sorts_by_client():
    whole = stack(Stacked(labelled([8, 2], loss=[0.8, 0.2]), labelled([5, 1], loss=[0.5, 0.1])))
    assert whole.client_index.tolist() == [1, 2, 5, 8]
    assert whole.arrays["x"].flatten().tolist() == [1, 2, 5, 8]
    assert whole.client_arrays["c"].flatten().tolist() == [10, 20, 50, 80]
    assert whole.metrics["loss"].tolist() == [0.1, 0.2, 0.5, 0.8]


def test_stack_of_nothing():
    assert stack(Stacked()) is None


def test_stack_keeps_what_failed_clients_said():
    first, second = labelled([8, 2]), labelled([])
    first.errors, second.errors = {5: "five"}, {1: "one"}
    whole = stack(Stacked(first, second))
    assert whole.client_index.tolist() == [2, 8]
    assert whole.errors == {5: "five", 1: "one"}
    nobody = stack(Stacked(second))
    assert len(nobody) == 0
    assert nobody.errors == {1: "one"}


def test_stack_outlives_the_engine_s_memory():
    """Chunks are valid until the next one is drawn: an engine may reuse the memory."""
    memory = torch.zeros(1, 1)

    class Reusing(Stacked):
        def chunks(self):
            for client in range(3):
                memory.fill_(client)
                yield Chunk(client_index=np.array([client]), arrays={"x": memory})

    assert stack(Reusing()).arrays["x"].flatten().tolist() == [0, 1, 2]


def test_metrics_that_not_all_report_are_left_out():
    whole = stack(Stacked(labelled([1], loss=[1.0], extra=[1.0]), labelled([2], loss=[2.0])))
    assert set(whole.metrics) == {"loss"}
    replies = [(1, model(1.0), {}, {"a": 1.0, "b": 1.0}), (2, model(2.0), {}, {"b": 2.0, "c": 0.0})]
    assert set(stack_replies(replies).metrics) == {"b"}


# --- sums ------------------------------------------------------------------------------------


def test_update_sum_by_hand():
    total = UpdateSum(model(1.0, -1.0))
    total.add({"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}, np.array([0.5, 2.0]))
    total.add({"x": torch.tensor([[10.0, 20.0]]).double()}, np.array([1.0]))
    # 0.5 (0, 3) + 2 (2, 5) + 1 (9, 21)
    assert total.sums["x"].tolist() == [13.0, 32.5]
    assert (total.weight, total.count) == (3.5, 3)
    assert total.step(2.0)["x"].tolist() == [27.0, 64.0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_update_sum_of_any_shape(shape):
    like = {"w": torch.ones(shape, dtype=torch.float64)}
    total = UpdateSum(like)
    total.add({"w": torch.stack([like["w"] * 2, like["w"] * 4])}, np.array([1.0, 3.0]))
    assert torch.equal(total.sums["w"], like["w"] * 10)  # 1 (2 - 1) + 3 (4 - 1)


def test_weights_beyond_float32_do_not_overflow():
    """Σ w y overflows float32 here, but the mean does not."""
    total = UpdateSum({"x": torch.zeros(1)})
    total.add({"x": torch.full((4, 1), 2e38)}, np.full(4, 1e7))
    assert total.sums["x"].item() == pytest.approx(8e45, rel=1e-6)
    assert total.step(1 / total.weight)["x"].item() == pytest.approx(2e38)


def test_scaling_inside_the_sum_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 100, generator=generator)
    weights = np.random.default_rng(0).integers(1, 1000, 7).astype(np.float64)
    total = UpdateSum({"x": torch.zeros(100)})
    total.add({"x": rows}, weights)
    assert torch.equal(total.sums["x"], (torch.from_numpy(weights).float() @ rows).double())


def test_chunks_are_accumulated_in_float64():
    """In float32 the sum would stay at 2^24."""
    total = UpdateSum({"x": torch.zeros(1)})
    total.add({"x": torch.full((1, 1), 2.0**24)}, np.ones(1))
    for _ in range(10):
        total.add({"x": torch.ones(1, 1)}, np.ones(1))
    assert total.sums["x"].item() == 2**24 + 10


def test_negative_and_zero_weights():
    total = UpdateSum(model(0.0))
    rows = {"x": torch.tensor([[1.0], [2.0]]).double()}
    total.add(rows, np.array([1.0, -1.0]))
    total.add(rows, np.zeros(2))
    assert total.sums["x"].item() == -1.0
    assert total.weight == 0.0


def test_a_record_of_another_kind_is_not_a_model():
    content = RecordDict({"arrays": ConfigRecord({"x": 1.0})})
    assert not content.array_records
    assert to_tensors(ArrayRecord()) == {}


def test_what_no_client_changed_stays_bit_equal():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    total = UpdateSum({"x": x})
    total.add({"x": x.expand(7, 50)}, np.random.default_rng(0).random(7))
    assert torch.equal(total.step(1 / total.weight)["x"], x)


def test_what_begins_at_another_address_is_copied_and_gives_the_same_bits():
    """MKL's dot products round by where their operands begin: those of 21 float32 do."""
    values = torch.randn(21, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 21, generator=torch.Generator().manual_seed(1))
    for offset in range(4, 64, 4):
        space = torch.empty(256, dtype=torch.uint8)
        start = -space.data_ptr() % 64 + offset
        elsewhere = space[start : start + 84].view(torch.float32).view(21, 1)
        elsewhere.copy_(values)
        found = aligned({"own": values, "elsewhere": elsewhere})
        assert found["own"] is values
        assert found["elsewhere"].data_ptr() % 64 == 0
        assert torch.equal(x @ found["elsewhere"], x @ values)
