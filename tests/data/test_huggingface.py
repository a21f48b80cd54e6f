import sys

import numpy as np
import pytest
import torch

from fedsim.data.huggingface import HuggingFace
from fedsim.errors import ConfigError, DataError


class Names:
    def __init__(self, names):
        self.names = names


class Image:
    """What is used of a PIL image."""

    def __init__(self, array, mode):
        self.array, self.mode = np.array(array, np.uint8), mode

    def convert(self, mode):
        if mode == self.mode:
            return self
        assert mode == "RGB"
        return Image(self.array[..., :3], "RGB")

    def __array__(self, dtype=None, copy=None):
        return self.array.astype(dtype) if dtype else self.array


class Split:
    """What is used of a `datasets.Dataset`."""

    def __init__(self, columns, features=None):
        self.columns, self.features = columns, features or {}
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column):
        return iter(self.columns[column])

    def select(self, indices):
        return Split({k: [v[i] for i in indices] for k, v in self.columns.items()}, self.features)


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedsim-lab\[data\]'"):
        HuggingFace().load()


def test_grey_images_and_named_labels():
    images = [Image([[0, 51], [102, 255]], "L"), Image([[255, 0], [0, 0]], "L")]
    split = Split({"image": images, "label": [2, 0]}, {"label": Names(["a", "b", "c"])})
    data = HuggingFace().convert(split, split)
    assert data.train_x.shape == (2, 1, 2, 2) and data.train_x.dtype == torch.float32
    assert data.train_x[0].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    assert data.train_y.tolist() == [2, 0] and data.num_outputs == 3
    assert data.class_names == ("a", "b", "c") and data.name == "ylecun/mnist"


def test_other_images_become_red_green_blue():
    split = Split({"image": [Image(np.full((1, 2, 4), 51), "RGBA")], "label": [0]})
    data = HuggingFace().convert(split, split)
    assert data.train_x.shape == (1, 3, 1, 2)
    assert data.train_x.unique().tolist() == pytest.approx([0.2])


def test_numbers_side_by_side_and_kept_columns():
    train = Split({"a": [1, 3], "b": [5.0, 5.0], "y": ["no", "yes"], "who": ["u", "v"]})
    test = Split({"a": [5], "b": [6.0], "y": ["yes"]})
    part = HuggingFace(x=["a", "b"], y="y", columns=["who"], normalise=True)
    data = part.convert(train, test)
    assert data.train_x.tolist() == [[-1, 0], [1, 0]] and data.test_x.tolist() == [[3, 1]]
    assert data.train_y.tolist() == [0, 1] and data.class_names == ("no", "yes")
    assert data.columns["who"].tolist() == ["u", "v"] and data.columns["who"].dtype.kind == "U"


def test_lists_keep_their_shape():
    split = Split({"signal": [[[1, 2], [3, 4]]] * 4, "label": [0, 1, 0, 1]})
    data = HuggingFace(x=["signal"]).convert(split, None)
    assert data.train_x.shape == (3, 2, 2) and data.test_x.shape == (1, 2, 2)


def test_text_becomes_bytes():
    split = Split({"text": ["ab\u00e9", "", "abcdef"], "label": [0, 1, 1]})
    data = HuggingFace(x=["text"], length=5).convert(split, split)
    assert data.train_x.tolist() == [[98, 99, 196, 170, 0], [0] * 5, [98, 99, 100, 101, 102]]
    assert data.train_x.dtype == torch.int64


def test_regression_keeps_the_scale():
    split = Split({"x": [[1.0], [2.0]], "y": [10, 30]})
    data = HuggingFace(x=["x"], y="y", task="regression").convert(split, split)
    assert data.train_y.tolist() == [[-1], [1]] and data.columns["target"].tolist() == [10, 30]
    assert data.class_names == () and data.num_outputs == 1


def test_limits():
    split = Split({"x": [[float(i)] for i in range(9)], "label": [i % 2 for i in range(9)]})
    data = HuggingFace(x=["x"], train_limit=4, test_limit=20).convert(split, split)
    assert data.train_x.flatten().tolist() == [0, 1, 2, 3] and len(data.test_x) == 9


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ({"image": [[1.0]], "labels": [0]}, {}, "no column 'label'.*did you mean 'labels'"),
        ({"image": [], "label": []}, {}, "empty split"),
        ({"image": [[1.0]], "label": [0]}, {"x": []}, "data.x is empty"),
        ({"image": [[1.0], [1.0, 2.0]], "label": [0, 1]}, {}, "differ in shape"),
        ({"image": [None, [1.0]], "label": [0, 1]}, {}, "differ in shape|gaps"),
        ({"image": [None, 1.0], "label": [0, 1]}, {}, "gaps"),
        ({"image": ["a", 1.0], "label": [0, 1]}, {}, "holds str values"),
        ({"image": [float("nan"), 1.0], "label": [0, 1]}, {}, "1 values that are NaN"),
        ({"a": ["s"], "b": [1], "label": [0]}, {"x": ["a", "b"]}, "mix text with numbers"),
        ({"a": [[1, 2]], "b": [1], "label": [0]}, {"x": ["a", "b"]}, "single numbers"),
        ({"image": [1.0], "label": [0.5]}, {}, "fractions"),
        ({"image": [1.0], "label": ["a"]}, {"task": "regression"}, "expected numbers"),
        ({"image": [1.0], "label": ["a" * 300]}, {}, "300 characters"),
    ],
)
def test_what_is_refused(columns, fields, message):
    split = Split(columns)
    with pytest.raises(DataError, match=message):
        HuggingFace(**fields).convert(split, split)


def test_through_the_real_library_without_network(tmp_path, monkeypatch):
    pytest.importorskip("flwr_datasets", reason="needs the extra 'data'")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("a,b,label\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n")
    fields = {"dataset": "csv", "data_dir": str(tmp_path / "files"), "x": ["a", "b"]}
    data = HuggingFace(test_split="train", **fields).load()
    assert data.train_x.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert data.test_y.tolist() == [0, 1, 0, 1] and data.class_names == ("x", "y")
    with pytest.raises(DataError, match="'no' is not present"):
        HuggingFace(test_split="no", **fields).load()
