import pytest

from fedsim.data.adult import Adult
from fedsim.errors import DataError

ROW = (
    "{age}, {job}, {weight}, HS-grad, 9, Divorced, Sales, Husband, White, Male, 0, 0, 40, {land}, "
    "{y}\n"
)


def row(age, job, land, y, weight=100):
    return ROW.format(age=age, job=job, land=land, y=y, weight=weight)


TRAIN = row(20, "Private", "Cuba", "<=50K") + row(40, "?", "Peru", ">50K", 300)
TEST = "|1x3 Cross validator\n" + row(50, "Private", "Laos", ">50K.") + "\n"


def load(tmp_path, train=TRAIN, test=TEST, **fields):
    (tmp_path / "adult.data").write_text(train)
    (tmp_path / "adult.test").write_text(test)
    return Adult(root=str(tmp_path), **fields).load()


def test_hand_computed_row(tmp_path):
    data = load(tmp_path)
    # Numbers: age, fnlwgt, education-num, gain, loss, hours. Categories: workclass [?, Private],
    # six of one value, native-country [Cuba, Peru].
    assert data.train_x.tolist() == [
        [-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1],
    ]
    # The test person is 2 standard deviations older than the mean; Laos is no train category.
    assert data.test_x.tolist() == [[2, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]]
    assert data.train_y.tolist() == [0, 1] and data.test_y.tolist() == [1]
    assert data.class_names == ("<=50K", ">50K")


def test_columns_are_the_train_persons(tmp_path):
    columns = load(tmp_path).columns
    assert columns["native_country"].tolist() == ["Cuba", "Peru"]
    assert columns["workclass"].tolist() == ["Private", "?"]
    assert columns["age"].tolist() == [20, 40]
    assert len(columns) == 9


def test_header_line_and_weight_are_optional(tmp_path):
    names = "age, workclass, fnlwgt, education, education-num, marital-status, occupation, "
    names += (
        "relationship, race, sex, capital-gain, capital-loss, hours-per-week, native-country, Y\n"
    )
    data = load(tmp_path, names + TRAIN, names + TEST, fnlwgt=False)
    assert data.train_x.shape == (2, 15) and data.train_x[:, 0].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (">50K", "50K", "person 2 has the label '50K'"),
        ("40, ?", "forty, ?", "column 'age'.*row 2.*'forty'"),
        ("40, ?", "nan, ?", "column 'age'"),
        (", Cuba", "", "line 1 has 14 fields, expected 15"),
    ],
)
def test_damaged_rows(tmp_path, old, new, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, TRAIN.replace(old, new, 1))


def test_missing_file_names_the_source(tmp_path):
    with pytest.raises(DataError, match=r"adult\.data.*archive\.ics\.uci\.edu"):
        Adult(root=str(tmp_path)).load()
