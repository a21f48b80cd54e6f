"""Damaged bytes give a data set or a DataError, nothing else."""

import contextlib
import gzip
import io
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.data.adult import Adult
from fedsim.data.california import CaliforniaHousing
from fedsim.data.dataset import Dataset
from fedsim.data.idx import Idx
from fedsim.data.medmnist import MedMnist
from fedsim.data.sentence_polarity import SentencePolarity
from fedsim.data.table import Table
from fedsim.data.text import Text
from fedsim.errors import DataError

fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "drop"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=6),
            st.sampled_from([b"\xff" * 4, b"\0" * 4, b",", b'"', b"\n", b"nan", b"1e999", b"-"]),
        ),
    ),
    max_size=4,
)


def damaged(data, changes):
    for kind, place, patch in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (patch[0] or 1)]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + patch + data[at + len(patch) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + patch + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + len(patch) :]
    return data


def check(part):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with contextlib.suppress(DataError):
            data = part.load()
            assert isinstance(data, Dataset)
            assert len(data.train_x) == len(data.train_y) > 0
            assert len(data.test_x) == len(data.test_y) > 0
            assert data.train_x.isfinite().all() and data.test_x.isfinite().all()
            assert all(len(column) == len(data.train_x) for column in data.columns.values())
            if data.task == "classification":
                for y in (data.train_y, data.test_y):
                    assert y.min() >= 0 and y.max() < data.num_outputs


@fuzz
@given(changes=edits, file=st.sampled_from(["images-idx3", "labels-idx1"]), packed=st.booleans())
def test_idx(tiny_idx, changes, file, packed):
    path = tiny_idx / "tiny" / f"train-{file}-ubyte"
    whole = path.read_bytes()
    try:
        data = gzip.compress(whole, mtime=0) if packed else whole
        path.write_bytes(damaged(data, changes))
        check(Idx(name="tiny", root=str(tiny_idx), normalise=True))
    finally:
        path.write_bytes(whole)


def npz(compressed, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


@fuzz
@given(changes=edits, compressed=st.booleans())
def test_medmnist(tmp_path, changes, compressed):
    data = npz(
        compressed,
        train_images=np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
        train_labels=np.array([[0], [1]], np.uint8),
        test_images=np.zeros((1, 2, 2, 3), np.uint8),
        test_labels=np.array([[1]], np.uint8),
    )
    (tmp_path / "retinamnist.npz").write_bytes(damaged(data, changes))
    check(MedMnist(root=str(tmp_path)))


@fuzz
@given(changes=edits, header=edits, compressed=st.booleans())
def test_npz_table(tmp_path, changes, header, compressed):
    data = npz(compressed, x=np.arange(8.0).reshape(4, 2), y=np.array([0, 1, 0, 1]))
    (tmp_path / "t.npz").write_bytes(damaged(data, changes))
    check(Table(file="t.npz", root=str(tmp_path), x=["x"]))
    # No checksum guards a bare array, so its header is reached here.
    stream = io.BytesIO()
    np.save(stream, np.stack([np.arange(8.0), np.arange(8.0) % 2], axis=1))
    (tmp_path / "t.npy").write_bytes(damaged(stream.getvalue(), header))
    check(Table(file="t.npy", root=str(tmp_path), y="1"))


@fuzz
@given(changes=edits, task=st.sampled_from(["classification", "regression"]), packed=st.booleans())
def test_csv_table(tmp_path, changes, task, packed):
    text = "a,b,kind,who,y\n" + "".join(
        f"{i},{i * i}.5,{'red' if i % 2 else 'blue'},u{i % 3},{i % 2}\n" for i in range(9)
    )
    data = gzip.compress(text.encode(), mtime=0) if packed else text.encode()
    (tmp_path / "t.csv").write_bytes(damaged(data, changes))
    check(
        Table(
            file="t.csv",
            root=str(tmp_path),
            x=["a", "b"],
            categorical=["kind"],
            user="who",
            task=task,
        )
    )


ADULT = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Sales, Husband, White, Male, 2174, 0, 40, "
)
HOUSING = (
    "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,"
    "median_income,median_house_value,ocean_proximity\n"
)


@fuzz
@given(changes=edits)
def test_adult(tmp_path, changes):
    train = f"{ADULT}Cuba, <=50K\n{ADULT}Peru, >50K\n".encode()
    (tmp_path / "adult.data").write_bytes(damaged(train, changes))
    (tmp_path / "adult.test").write_text(f"{ADULT}Peru, >50K.\n")
    check(Adult(root=str(tmp_path)))


@fuzz
@given(changes=edits, target=st.sampled_from(["standard", "log", "max"]))
def test_california_housing(tmp_path, changes, target):
    rows = "".join(
        f"-1{i},3{i},{i},{9 * i}0,{i or ''},{i}00,{i + 3},{i}.5,{i}9,A\n" for i in range(6)
    )
    (tmp_path / "housing.csv").write_bytes(damaged((HOUSING + rows).encode(), changes))
    check(CaliforniaHousing(root=str(tmp_path), target=target))


@fuzz
@given(changes=edits, speakers=st.booleans())
def test_text(tmp_path, changes, speakers):
    text = "ANN:\nabcabcabcabc\n\nBOB:\nbca\u00e9bcabca\n\nANN:\ncabcab\n".encode()
    (tmp_path / "a.txt").write_bytes(damaged(text, changes))
    check(Text(name="own", file="a.txt", root=str(tmp_path), length=2, speakers=speakers))


@fuzz
@given(changes=edits, packed=st.booleans())
def test_sentence_polarity(tmp_path, changes, packed):
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", method) as archive:
        for end in ("pos", "neg"):
            lines = "".join(f"{end} caf\u00e9 {i}\n" for i in range(9))
            archive.writestr(f"rt-polarity.{end}", lines)
    (tmp_path / "sentence_polarity.zip").write_bytes(damaged(stream.getvalue(), changes))
    check(SentencePolarity(root=str(tmp_path), size=8, length=3, test_fraction=0.5))


def test_a_wrong_error_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc")
    monkeypatch.setattr("fedsim.data.text._encode", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(Text(name="own", file="a.txt", root=str(tmp_path), length=1, speakers=False))
