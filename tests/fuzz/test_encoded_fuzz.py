"""Random bytes in the place of an encoded update: finite models, or rejected and counted.

`FEDSIM_FUZZ` sets the number of examples, as in test_messages_fuzz.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.admission import Admission, AdmittedReplies
from fedsim.compression import Codec, Compressor
from fedsim.compression.qsgd import QSGD
from fedsim.compression.top_k import TopK
from fedsim.compression.uniform import Uniform
from fedsim.compression.update import ENCODED
from fedsim.records import NUM_EXAMPLES, Chunk, TensorArray, stack
from tests.fuzz.test_messages_fuzz import EXAMPLES, FAST, PARAMS, contents, instructions
from tests.strategies._toy import Stacked

FEW = settings(FAST, max_examples=max(10, EXAMPLES // 5))
CODECS: list[Codec] = [
    *(QSGD(levels=levels, bucket=bucket) for levels in (1, 5, 15) for bucket in (3, None)),
    *(Uniform(bits=bits, bucket=bucket) for bits in (1, 3, 32) for bucket in (3, None)),
    *(TopK(share=share) for share in (0.01, 0.5, 1.0)),
]
LIKE = {**PARAMS, "seen": torch.zeros((), dtype=torch.int64)}
COUNT = sum(t.numel() for t in PARAMS.values())
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 3e38, 1e-45], "<f4")


@st.composite
def codes(draw: st.DrawFn, codec: Codec) -> np.ndarray:
    """Bytes of the right length: any, or a good code with some numbers or bytes replaced."""
    dtype = np.dtype("<f4")
    size = codec.size(COUNT, dtype)
    if draw(st.booleans()):
        return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    vector = np.random.default_rng(draw(st.integers(0, 5))).normal(size=COUNT).astype(dtype)
    code = codec.encode(vector, np.random.default_rng(0)).copy()
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, size - 1))
        if draw(st.booleans()):
            bad = SPECIAL[draw(st.integers(0, len(SPECIAL) - 1))].tobytes()
            number = code[place // 4 * 4 :][:4]
            number[:] = np.frombuffer(bad, np.uint8)[: len(number)]
        else:
            code[place] = draw(st.integers(0, 255))
    return code


@FAST
@given(st.data())
def test_any_bytes_are_a_vector_or_refused(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(CODECS))
    code = data.draw(codes(codec))
    before = code.copy()
    try:
        vector = codec.decode(code, COUNT, np.dtype("f4"))
    except ValueError as error:
        assert str(error).startswith("has ")
        return
    finally:
        assert (code == before).all()
    assert vector.shape == (COUNT,)
    assert vector.dtype == np.float32


def admit(codec: Codec, received: object) -> AdmittedReplies:
    return Admission().admit(
        instructions(), received, LIKE, compressor=Compressor(codec=codec, seed=0)
    )


def check(admitted: AdmittedReplies, count: int) -> None:
    for chunk in admitted.chunks():
        for name, like in LIKE.items():
            assert chunk.arrays[name].shape == (len(chunk), *like.shape)
            assert chunk.arrays[name].dtype == like.dtype
            assert torch.isfinite(chunk.arrays[name]).all()
    assert len(admitted.admitted) + sum(admitted.rejected.values()) == count
    assert set(admitted.rejected) <= {"content", "non-finite"}


@FEW
@given(st.data())
def test_engines_agree_on_what_is_rejected(data: st.DataObject) -> None:
    """The same rows as one stacked chunk, as messages of tensors, and as messages of bytes."""
    codec = data.draw(st.sampled_from(CODECS))
    rows = [data.draw(codes(codec)) for _ in range(3)]
    chunk = Chunk(
        client_index=np.arange(3),
        arrays={
            ENCODED: torch.from_numpy(np.stack(rows)),
            "seen": torch.ones(3, dtype=torch.int64),
        },
        metrics={NUM_EXAMPLES: np.ones(3)},
    )
    ends = []
    stacked = admit(codec, Stacked(chunk))
    check(stacked, 3)
    ends.append((stacked.admitted, dict(stacked.rejected), stacked.num_faulty, stacked.late))
    for array in (
        lambda values: Array(values.numpy()),
        lambda values: TensorArray(values),
    ):
        messages = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(
                            {name: array(rows[k]) for name, rows in chunk.arrays.items()}
                        ),
                        "metrics": MetricRecord({NUM_EXAMPLES: 1.0}),
                    }
                ),
                reply_to=sent,
            )
            for k, sent in enumerate(instructions())
        ]
        admitted = admit(codec, messages)
        check(admitted, 3)
        ends.append(
            (admitted.admitted, dict(admitted.rejected), admitted.num_faulty, admitted.late)
        )
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][2] == sum(ends[0][1].values())
    assert ends[0][3] == 0


@FEW
@given(st.sampled_from(CODECS), contents())
def test_any_message_is_admitted_or_rejected(codec: Codec, content: RecordDict) -> None:
    """A model as it is, is no encoding either."""
    received = [Message(content, reply_to=instructions()[0])]
    admitted = admit(codec, received)
    assert stack(admitted) is None
    assert sum(admitted.rejected.values()) == 1


@pytest.mark.parametrize("codec", CODECS[::6], ids=lambda codec: type(codec).__name__)
def test_another_length_is_refused_before_it_is_decoded(codec: Codec) -> None:
    size = codec.size(COUNT, np.dtype("f4"))
    for length in (0, size - 1, size + 1):
        record = ArrayRecord(
            {ENCODED: Array(np.zeros(length, np.uint8)), "seen": Array(np.zeros((), np.int64))}
        )
        content = RecordDict({"arrays": record, "metrics": MetricRecord({NUM_EXAMPLES: 1.0})})
        admitted = admit(codec, [Message(content, reply_to=instructions()[0])])
        assert stack(admitted) is None
        assert f"uint8[{size}]" in admitted.details[0]
