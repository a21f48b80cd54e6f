import gzip

import numpy as np
import pytest
import torch

from fedsim.data.table import Table
from fedsim.errors import ConfigError, DataError

CSV = "who,a,b,kind,y\n" + "".join(
    f"u{i % 3},{i},{i * 10},{'red' if i % 2 else 'blue'},{'yes' if i >= 4 else 'no'}\n"
    for i in range(8)
)


def csv_table(tmp_path, text=CSV, **fields):
    (tmp_path / "t.csv").write_text(text)
    return Table(file="t.csv", root=str(tmp_path), **fields)


def npz_table(tmp_path, arrays, **fields):
    np.savez(tmp_path / "t.npz", **arrays)
    return Table(file="t.npz", root=str(tmp_path), **fields)


def test_csv_column_map(tmp_path):
    data = csv_table(
        tmp_path, x=["b"], categorical=["kind"], user="who", columns=["a"], scale="none"
    ).load()
    assert data.train_x.shape == (6, 3) and data.test_x.shape == (2, 3)
    a = data.columns["a"].astype(int)
    assert data.train_x[:, 0].tolist() == (a * 10).tolist()
    assert data.train_x[:, 1].tolist() == (a % 2 == 0).tolist()  # blue, then red
    assert data.train_x[:, 2].tolist() == (a % 2 == 1).tolist()
    assert data.columns["user"].tolist() == [f"u{i % 3}" for i in a]
    assert data.train_y.tolist() == (a >= 4).tolist() and data.class_names == ("no", "yes")
    assert data.test_y.bincount().tolist() == [1, 1]


def test_inputs_default_to_all_other_columns(tmp_path):
    data = csv_table(tmp_path, user="who", columns=["kind"], scale="none").load()
    assert data.train_x[:, 1].tolist() == (data.train_x[:, 0] * 10).tolist()
    with pytest.raises(DataError, match=r"column 'who'.*is not a number"):
        csv_table(tmp_path).load()


def test_standard_scale_is_of_the_train_part(tmp_path):
    (tmp_path / "test.csv").write_text("y,b,a\n1,7,4\n0,9,2\n")
    data = csv_table(tmp_path, "a,b,y\n1,5,0\n3,5,2\n", test_file="test.csv").load()
    assert data.train_x.tolist() == [[-1, 0], [1, 0]]
    assert data.test_x.tolist() == [[2, 2], [0, 4]]
    # Classes are those of both parts: 0, 1, 2.
    assert data.train_y.tolist() == [0, 2] and data.test_y.tolist() == [1, 0]
    assert data.class_names == ("0", "1", "2")


def test_test_file_needs_no_users(tmp_path):
    (tmp_path / "test.csv").write_text("a,b,y\n1,1,no\n")
    fields = {"user": "who", "columns": ["kind"], "test_file": "test.csv"}
    assert csv_table(tmp_path, **fields).load().test_x.shape == (1, 2)


def test_regression_keeps_the_scale(tmp_path):
    text = "a,y\n" + "".join(f"{i},{100 * i}\n" for i in range(8))
    data = csv_table(tmp_path, text, task="regression").load()
    raw = data.columns["target"]
    assert data.train_y.shape == (6, 1) and data.train_y.dtype == torch.float32
    assert data.train_y[:, 0].numpy() == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-6)
    plain = csv_table(tmp_path, text, task="regression", target="none").load()
    assert plain.train_y[:, 0].tolist() == raw.tolist()


def test_absolute_file_gzip_and_delimiter(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a;y\n1;0\n2;1\n3;0\n4;1\n"))
    data = Table(file=str(path), delimiter=";", scale="none", test_fraction=0.5).load()
    assert sorted([*data.train_x.flatten().tolist(), *data.test_x.flatten().tolist()]) == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_npy_columns_are_numbered(tmp_path, packed):
    array = np.stack([np.arange(8), np.arange(8) % 2, np.arange(8) * 2], 1).astype(np.float32)
    path = tmp_path / "t.npy"
    np.save(path, array)
    if packed:
        path.with_name("t.npy.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    data = Table(file="t.npy", root=str(tmp_path), y="1", scale="none").load()
    assert data.train_x[:, 1].tolist() == (data.train_x[:, 0] * 2).tolist()
    assert data.class_names == ("0", "1")
    np.save(path, array[0])
    with pytest.raises(DataError, match=r"expected a table \[N, D\]"):
        Table(file=str(path), y="1").load()


def test_npz_arrays_keep_their_shape(tmp_path):
    arrays = {
        "x_train": np.full((4, 2, 3), 51, np.uint8),
        "y_train": np.array([5, 7, 5, 7]),
        "x_test": np.full((1, 2, 3), 255, np.uint8),
        "y_test": np.array([[7]]),
        "writer": np.arange(4),
    }
    data = npz_table(
        tmp_path,
        arrays,
        x=["x_train"],
        y="y_train",
        test_x=["x_test"],
        test_y="y_test",
        user="writer",
        scale="bytes",
    ).load()
    assert data.train_x.shape == (4, 2, 3) and data.train_x.unique().tolist() == pytest.approx(
        [0.2]
    )
    assert data.test_x.unique().tolist() == [1.0]
    assert data.train_y.tolist() == [0, 1, 0, 1] and data.test_y.tolist() == [1]
    assert data.columns["user"].tolist() == [0, 1, 2, 3]


def test_tokens_with_a_target_per_position(tmp_path):
    x = np.arange(12).reshape(4, 3) % 5
    data = npz_table(tmp_path, {"x": x, "y": x + 1}, x=["x"], scale="tokens").load()
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert torch.equal(data.train_y, data.train_x + 1) and data.num_outputs == 6
    data = npz_table(tmp_path, {"x": x, "y": np.arange(4) % 2}, x=["x"], scale="tokens").load()
    assert data.train_y.shape == (3,) and data.num_outputs == 2


@pytest.mark.parametrize(
    ("arrays", "fields", "error", "message"),
    [
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, {"x": ["x"]}, DataError, "one length for all"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, {"x": ["x"]}, DataError, "at least one sample"),
        ({"x": np.array(1.0), "y": np.zeros(1)}, {"x": ["x"]}, DataError, "lengths"),
        ({"x": np.zeros((4, 0)), "y": np.zeros(4)}, {"x": ["x"]}, DataError, "no values"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, {}, ConfigError, r"data\.x: empty"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, {"x": ["z"]}, DataError, "no array 'z'"),
        ({"x": np.array(list("abcd")), "y": np.zeros(4)}, {"x": ["x"]}, DataError, "holds text"),
        (
            {"x": np.full(4, np.nan), "y": np.zeros(4)},
            {"x": ["x"]},
            DataError,
            "column 'x'.* 4 values",
        ),
        ({"x": np.zeros(4), "y": np.full(4, 0.5)}, {"x": ["x"]}, DataError, "fractions"),
        (
            {"x": np.zeros(4), "y": np.zeros((4, 2))},
            {"x": ["x"]},
            DataError,
            "one label per sample",
        ),
        (
            {"x": np.full(4, 256), "y": np.zeros(4)},
            {"x": ["x"], "scale": "bytes"},
            DataError,
            "0..255",
        ),
        (
            {"x": np.full(4, -1), "y": np.zeros(4)},
            {"x": ["x"], "scale": "tokens"},
            DataError,
            "tokens",
        ),
        (
            {"x": np.full(4, 2**24), "y": np.zeros(4)},
            {"x": ["x"], "scale": "tokens"},
            DataError,
            "tokens",
        ),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, {"x": ["x", "y"]}, DataError, "one array only"),
        (
            {"x": np.zeros(4), "y": np.array(list("abab"))},
            {"x": ["x"], "task": "regression"},
            DataError,
            "holds text",
        ),
        (
            {"x": np.zeros(5000), "c": np.arange(5000), "y": np.zeros(5000)},
            {"x": ["x"], "categorical": ["c"], "test_fraction": 0.1},
            DataError,
            "4500 different values",
        ),
    ],
)
def test_what_is_refused(tmp_path, arrays, fields, error, message):
    with pytest.raises(error, match=message):
        npz_table(tmp_path, arrays, **fields).load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_x": ["a"]}, "^test_x: .*together"),
        ({"test_x": ["a"], "test_y": "b", "test_file": "c", "x": ["d"]}, "^test_x"),
        ({"test_x": ["a"], "test_y": "b"}, "^test_x: it must be as long as x"),
        ({"scale": "bytes", "categorical": ["a"]}, "^categorical"),
        ({"delimiter": ""}, "^delimiter"),
        ({"delimiter": ",,"}, "^delimiter"),
        ({"delimiter": "\n"}, "^delimiter"),
    ],
)
def test_fields_that_contradict_each_other(fields, message):
    with pytest.raises(ConfigError, match=message):
        Table(**fields)


def test_file_must_be_given_and_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.file=PATH"):
        Table().load()
    with pytest.raises(DataError, match=r"'no\.csv'.*data\.file"):
        Table(file="no.csv", root=str(tmp_path)).load()
