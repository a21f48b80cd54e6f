import numpy as np
import pytest

from fedsim.data.columns import class_index, one_hot, standardise, text_column, to_float32
from fedsim.errors import DataError


def test_standardise_uses_the_train_part_only():
    train, test = standardise(np.array([[1.0], [3.0]]), np.array([[5.0], [2.0]]))
    assert train.tolist() == [[-1.0], [1.0]]
    assert test.tolist() == [[3.0], [0.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -7.3])
def test_constant_column_is_only_centred(value):
    train, test = standardise(np.full((7, 1), value), np.array([[value + 2.0]]))
    assert np.abs(train).max() <= 1e-9
    assert test[0, 0] == pytest.approx(2.0)


def test_small_numbers_are_no_constant():
    (train,) = standardise(np.array([[1e-20], [3e-20]]))
    assert train.ravel() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_to_float32_names_what_is_not_finite(bad):
    with pytest.raises(DataError, match=r"column 'a' has 1 values.*sample 1"):
        to_float32(np.array([0.0, bad]), "column 'a'")
    assert to_float32(np.array([3e38]), "").dtype == np.float32


def test_class_index_sorts_whole_numbers_as_numbers():
    index, names = class_index(np.array(["10", "9", "-1", "10"]))
    assert index.tolist() == [2, 1, 0, 2] and names == ("-1", "9", "10")
    index, names = class_index(np.array(["10", "9", "x"]))
    assert index.tolist() == [0, 1, 2] and names == ("10", "9", "x")


def test_text_column_limits():
    assert text_column(["a\0", "a"], "c").tolist() == ["a?", "a"]
    text_column(["x" * 256], "c")
    with pytest.raises(DataError, match="257"):
        text_column(["x" * 257], "c")


def test_one_hot_of_an_unknown_value_is_zero():
    codes = one_hot(np.array(["b", "z"]), np.array(["a", "b"]))
    assert codes.tolist() == [[0, 1], [0, 0]]
