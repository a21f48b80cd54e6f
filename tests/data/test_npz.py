import io
import zipfile

import numpy as np
import pytest

from fedsim.data.npz import read_npy, read_npz
from fedsim.errors import DataError


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([["a", "\u00e9\U0001f600"]]),
        np.array([True, False]),
        np.array(3.5, np.float16),
        np.empty((0, 4)),
    ],
)
def test_same_as_numpy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", first=array, other=np.zeros(2))
    for result in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz", ["first"])["first"]):
        assert result.dtype == array.dtype.newbyteorder("=") and result.dtype.isnative
        assert result.shape == array.shape and (result == array).all()


def test_long_header_version(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(np.arange(3), version=(2, 0)))
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 1, 2]


def test_unknown_key_suggests_a_near_one(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros(1))
    with pytest.raises(DataError, match="did you mean 'train_images'"):
        read_npz(tmp_path / "a.npz", ["train_image"])


def test_objects_are_never_loaded(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    array = np.array([Hostile()], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=array)
    with pytest.raises(DataError, match="objects are never loaded"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(DataError, match="objects are never loaded"):
        read_npz(tmp_path / "a.npz", ["a"])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.zeros(2, "S3"), np.zeros(2, "i4,f8")])
def test_other_types_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="expected numbers or text"):
        read_npy(tmp_path / "a.npy")


def header(shape, descr="'<i8'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header("(4,)"), "only 24"),
        (header("(2,)"), "are more"),
        (header("(999999999,)"), "only 24"),
        (header("(999999999, 999999999)"), "claims shape"),
        (header("(0, 99999999999999999999)"), "claims shape"),
        (header("(-3, -1)"), "claims shape"),
        (header("(3,)", "'<U0'"), "expected numbers or text"),
        (header("(1.5,)"), "not a readable npy"),
        (header("[3]"), "not a readable npy"),
        (header("(3,)", "'no type'"), "not a readable npy"),
        (header("(" * 3000 + "3" + ")" * 3000), "not a readable npy"),
        (header("(3,)")[:30], "not a readable npy"),
        (header("(3,)").replace(b"\1\0", b"\3\0", 1), "version"),
        (b"\x93NUMPX", "not a readable npy"),
        (b"", "not a readable npy"),
    ],
)
def test_header_must_fit_the_bytes(tmp_path, head, message):
    (tmp_path / "a.npy").write_bytes(header("(3,)") + bytes(24))
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 0, 0]
    (tmp_path / "a.npy").write_bytes(head + bytes(24))
    with pytest.raises(DataError, match=message):
        read_npy(tmp_path / "a.npy")


def test_damaged_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100))
    whole = path.read_bytes()
    for data in (b"", b"PK\3\4", whole[:-30], whole[:200] + b"\xff" + whole[201:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.npz"):
            read_npz(path, ["a"])


def test_impossible_characters(tmp_path):
    data = npy(np.array(["ab"]))
    (tmp_path / "a.npy").write_bytes(data[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(DataError, match="impossible characters"):
        read_npy(tmp_path / "a.npy")


def test_bomb_is_stopped_at_the_claimed_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.arange(3)) + bytes(10**7))
    with pytest.raises(DataError, match="are more"):
        read_npz(tmp_path / "a.npz", ["a"])
