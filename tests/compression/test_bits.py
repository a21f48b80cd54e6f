"""Numbers of b bits: hand pins, all widths, lengths about the edge of a piece."""

import numpy as np
import pytest

from fedsim.compression import bits
from fedsim.compression.bits import pack, packed_bytes, unpack


def test_by_hand() -> None:
    # 3 + 20·2^5 + 0·2^10 + 12·2^15 = 393859 = 0x060283, its lowest byte first
    assert pack(np.array([3, 20, 0, 12]), 5).tolist() == [0x83, 0x02, 0x06]
    assert unpack(np.array([0x83, 0x02, 0x06], np.uint8), 4, 5).tolist() == [3, 20, 0, 12]
    assert pack(np.array([2**32 - 1]), 32).tolist() == [255] * 4


@pytest.mark.parametrize("width", range(1, 33))
def test_there_and_back(width: int) -> None:
    rng = np.random.default_rng(width)
    for count in (0, 1, 7, 8, 9, 100):
        values = rng.integers(0, 2**width, count)
        packed = pack(values, width)
        assert len(packed) == packed_bytes(count, width) == -(-count * width // 8)
        assert unpack(packed, count, width).tolist() == values.tolist()
        as_one = sum(int(v) << (i * width) for i, v in enumerate(values))
        assert int.from_bytes(packed.tobytes(), "little") == as_one


def test_pieces_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**5, 100)
    whole = pack(values, 5)
    monkeypatch.setattr(bits, "_PIECE", 8)
    assert pack(values, 5).tolist() == whole.tolist()
    assert unpack(whole, 100, 5).tolist() == values.tolist()


def test_a_bit_behind_the_last_number_is_refused() -> None:
    with pytest.raises(ValueError, match="behind the last"):
        unpack(np.array([0, 0, 0x10], np.uint8), 4, 5)
