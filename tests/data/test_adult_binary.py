import pytest

from fedsim.data.adult_binary import AdultBinary
from fedsim.errors import DataError
from tests.data.test_adult import TEST, row

TRAIN = "".join(row(age, "Private", "Cuba", "<=50K", 100 + age) for age in (20, 30, 40, 50))
TRAIN += row(60, "?", "Peru", ">50K", 160)


def load(tmp_path, train=TRAIN, test=TEST):
    (tmp_path / "adult.data").write_text(train)
    (tmp_path / "adult.test").write_text(test)
    return AdultBinary(root=str(tmp_path)).load()


def test_hand_computed_rows(tmp_path):
    data = load(tmp_path)
    # age 5, workclass [Private], fnlwgt 5, HS-grad, education-num 5 (9: the second), five of one
    # value, gain 2, loss 2, hours 5 (40: the third), native-country [Cuba, Peru].
    number, ones, none, hours = [0, 1, 0, 0, 0], [1] * 5, [1, 0], [0, 0, 1, 0, 0]
    assert data.train_x.shape == (5, 5 + 1 + 5 + 1 + 5 + 5 + 2 + 2 + 5 + 2)
    for place, x in enumerate(data.train_x.tolist()):
        fifth = [float(k == place) for k in range(5)]
        work, land = ([1], [1, 0]) if place < 4 else ([0], [0, 1])
        assert x == [*fifth, *work, *fifth, 1, *number, *ones, *none, *none, *hours, *land]
    # Age 50, the fourth fifth; weight 100, the first; Laos is no train category.
    assert data.test_x.tolist() == [
        [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1, *number, *ones, *none, *none, *hours, 0, 0]
    ]
    assert data.train_y.tolist() == [0, 0, 0, 0, 1] and data.test_y.tolist() == [1]


def test_gains_and_losses_are_none_or_some(tmp_path):
    train = TRAIN + row(20, "Private", "Cuba", "<=50K").replace("Male, 0, 0, 40", "Male, 7, 9, 99")
    x = load(tmp_path, train).train_x[-1].tolist()
    assert x[-11:-2] == [0, 1, 0, 1, 0, 0, 0, 0, 1]


def test_missing_file_names_the_source(tmp_path):
    with pytest.raises(DataError, match=r"adult\.data.*archive\.ics\.uci\.edu"):
        AdultBinary(root=str(tmp_path)).load()
