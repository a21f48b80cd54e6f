import numpy as np
import pytest

from fedsim.data.medmnist import MedMnist
from fedsim.errors import DataError


@pytest.fixture
def arrays():
    return {
        "train_images": np.array([0, 51, 255], np.uint8)[:, None, None, None]
        * np.ones((1, 2, 2, 3), np.uint8),
        "train_labels": np.array([[0], [4], [1]], np.uint8),
        "val_images": np.full((1, 2, 2, 3), 102, np.uint8),
        "val_labels": np.array([[2]], np.uint8),
        "test_images": np.zeros((2, 2, 2, 3), np.uint8),
        "test_labels": np.array([[0], [3]], np.uint8),
    }


def load(tmp_path, arrays, **fields):
    (tmp_path / "retinamnist").mkdir(exist_ok=True)
    np.savez(tmp_path / "retinamnist" / "retinamnist.npz", **arrays)
    return MedMnist(root=str(tmp_path), **fields).load()


def test_load(tmp_path, arrays):
    data = load(tmp_path, arrays)
    assert data.train_x.shape == (3, 3, 2, 2) and data.test_x.shape == (2, 3, 2, 2)
    assert data.train_x[1].unique().tolist() == pytest.approx([0.2])
    assert data.train_y.tolist() == [0, 4, 1] and data.num_outputs == 5


def test_validation_images_can_join(tmp_path, arrays):
    data = load(tmp_path, arrays, with_val=True)
    assert data.train_y.tolist() == [0, 4, 1, 2] and data.test_y.tolist() == [0, 3]
    assert data.train_x[3, 0, 0, 0].item() == pytest.approx(0.4)


def test_binary_keeps_the_grades_aside(tmp_path, arrays):
    data = load(tmp_path, arrays, binary=True, flat=True)
    assert data.train_y.tolist() == [0, 1, 1] and data.test_y.tolist() == [0, 1]
    assert data.num_outputs == 2 and data.columns["label"].tolist() == [0, 4, 1]
    assert data.train_x.shape == (3, 12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_images", np.zeros((3, 2, 2, 2), np.uint8), r"uint8 \[3, 2, 2, 2\]"),
        ("train_images", np.zeros((3, 2, 2), np.float32), "float32"),
        ("train_images", np.zeros((0, 2, 2), np.uint8), "expected uint8"),
        ("test_images", np.zeros((2, 2, 2), np.uint8), "different shapes"),
        ("train_labels", np.zeros((3, 14), np.uint8), "multi-label"),
        ("train_labels", np.zeros((2, 1), np.uint8), "each of the 3 images"),
        ("train_labels", np.array([0, -1, 2]), r"outside 0\.\.255"),
        ("train_labels", np.array(["a", "b", "c"]), "expected one whole number"),
    ],
)
def test_arrays_must_fit(tmp_path, arrays, key, value, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, arrays | {key: value})


def test_missing_file_and_key(tmp_path, arrays):
    with pytest.raises(DataError, match=r"bloodmnist\.npz.*medmnist\.com"):
        MedMnist(name="bloodmnist", root=str(tmp_path)).load()
    del arrays["val_labels"]
    load(tmp_path, arrays)
    with pytest.raises(DataError, match="no array 'val_labels'"):
        load(tmp_path, arrays, with_val=True)
