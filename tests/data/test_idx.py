import gzip

import numpy as np
import pytest
import torch

from fedsim.data import idx
from fedsim.data.idx import Idx, read_idx
from fedsim.errors import DataError


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_every_documented_type(tmp_path, idx_bytes, code, dtype):
    array = np.array([[1, 2, 3], [4, 5, 100]]).astype(dtype)
    (tmp_path / "a").write_bytes(idx_bytes(array, code))
    result = read_idx(tmp_path / "a", 2)
    assert result.tolist() == [[1, 2, 3], [4, 5, 100]]
    assert result.dtype.isnative and result.dtype == np.dtype(dtype).newbyteorder("=")


def test_header_is_taken_at_its_word(tmp_path):
    path = tmp_path / "a"
    good = bytes.fromhex("00000802 00000002 00000002 01020304")
    path.write_bytes(good)
    assert read_idx(path, 2).tolist() == [[1, 2], [3, 4]]
    for data, message in [
        (b"", "not an IDX file"),
        (good[:3], "not an IDX file"),
        (b"\1" + good[1:], "not an IDX file"),
        (b"\0\0\x0a" + good[3:], "not an IDX file"),
        (b"\0\0\x08\x03" + good[4:], "3 dimensions; expected 2"),
        (good[:9], "inside its IDX header"),
        (good[:-1], "only 3"),
        (good + b"\0", "are more"),
        (good[:4] + b"\xff" * 8 + good[12:], "GiB"),
        (good[:4] + bytes.fromhex("00010000 00001000") + good[12:], "only 4"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path, 2)
        assert str(path) in str(caught.value)


def test_load(tiny_idx):
    data = Idx(name="tiny", root=str(tiny_idx)).load()
    assert data.train_x.shape == (3, 1, 2, 2) and data.test_x.shape == (2, 1, 2, 2)
    assert data.train_x[0].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    assert data.train_y.tolist() == [2, 0, 1] and data.train_y.dtype == torch.int64
    assert data.test_y.tolist() == [1, 3]
    assert data.num_outputs == 4 and data.class_names == ()


def test_options(tiny_idx):
    data = Idx(name="tiny", root=str(tiny_idx), flat=True, train_limit=1, normalise=True).load()
    assert data.train_x.shape == (1, 4) and data.train_y.tolist() == [2]
    # The moments are those of the samples kept: mean 0.4, variance (0.16 + 0.04 + 0 + 0.36) / 4.
    assert data.train_x[0].tolist() == pytest.approx(
        [-0.4 / 0.14**0.5, -0.2 / 0.14**0.5, 0, 0.6 / 0.14**0.5], abs=1e-6
    )
    assert len(Idx(name="tiny", root=str(tiny_idx), test_limit=1).load().test_y) == 1


def test_gzip_dotted_names_and_another_stem(tiny_idx):
    folder = tiny_idx / "tiny"
    for file in list(folder.iterdir()):
        data = gzip.compress(file.read_bytes())
        file.unlink()
        name = file.name.replace("-idx", ".idx").replace("train", "letters")
        (folder / f"{name}.gz").write_bytes(data)
    assert Idx(name="tiny", root=str(tiny_idx), train="letters").load().train_y.tolist() == [
        2,
        0,
        1,
    ]


def test_missing_file_names_the_source(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*zalandoresearch"):
        Idx(name="fashion_mnist", root=str(tmp_path)).load()


def test_one_known_set_is_not_taken_for_the_other(tiny_idx, monkeypatch):
    (tiny_idx / "tiny").rename(tiny_idx / "mnist")
    assert Idx(name="mnist", root=str(tiny_idx)).load().class_names[3] == "3"
    labels = (tiny_idx / "mnist" / "train-labels-idx1-ubyte").read_bytes()
    md5 = idx.hashlib.md5(labels, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(idx._LABELS_MD5, md5, "fashion_mnist")
    with pytest.raises(DataError, match="is fashion_mnist, not mnist"):
        Idx(name="mnist", root=str(tiny_idx)).load()


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(2, np.uint8), "one label per image"),
        ("t10k-images-idx3-ubyte", np.zeros((2, 3, 2), np.uint8), "of one size"),
        ("train-images-idx3-ubyte", np.zeros((0, 2, 2), np.uint8), "one label per image"),
        ("train-images-idx3-ubyte", np.zeros((3, 0, 2), np.uint8), "at least one image"),
    ],
)
def test_parts_must_fit(tiny_idx, idx_bytes, file, array, message):
    (tiny_idx / "tiny" / file).write_bytes(idx_bytes(array))
    with pytest.raises(DataError, match=message):
        Idx(name="tiny", root=str(tiny_idx)).load()


def test_other_types_and_labels_are_refused(tiny_idx, idx_bytes):
    labels = tiny_idx / "tiny" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(3, ">i2"), 0x0B))
    with pytest.raises(DataError, match="int16; expected unsigned bytes"):
        Idx(name="tiny", root=str(tiny_idx)).load()
    (tiny_idx / "tiny").rename(tiny_idx / "mnist")
    (tiny_idx / "mnist" / labels.name).write_bytes(idx_bytes(np.array([0, 10, 1], np.uint8)))
    with pytest.raises(DataError, match=r"labels 0\.\.9, found 10"):
        Idx(name="mnist", root=str(tiny_idx)).load()
