import gzip

import numpy as np
import pytest

from fedsim.data.csv_columns import names, numbers, read_csv, read_named
from fedsim.errors import DataError


def write(tmp_path, text, packed=False):
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_columns(tmp_path, packed):
    path = write(tmp_path, 'a, "b,c",d\r\n1, x , 2.5\n\n  ,"y\nz",-3e2\n', packed)
    assert read_csv(path) == {"a": ["1", ""], "b,c": ["x", "y\nz"], "d": ["2.5", "-3e2"]}
    assert numbers(read_csv(path), "d", path).tolist() == [2.5, -300.0]
    assert names(read_csv(path), "b,c", path).tolist() == ["x", "y\nz"]


def test_other_delimiter(tmp_path):
    assert read_csv(write(tmp_path, "a;b\n1,5;2\n"), ";") == {"a": ["1,5"], "b": ["2"]}


def test_read_named_skips_by_the_first_field(tmp_path):
    path = write(tmp_path, "|comment\nage, job\n1, age\n")
    assert read_named(path, ("a", "b"), ("|", "age")) == {"a": ["1"], "b": ["age"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name the columns"),
        ("a,a\n1,2\n", "each once"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, expected 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields"),
        ("a,b\n1,2\n,,\n", "line 3 has 3 fields"),
        ('a,b\n1,"2\n', "line 2"),
        ('a,b\n1,"2"3\n', "line 2"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_csv(write(tmp_path, text))


@pytest.mark.parametrize("field", ["", "x", "1_000", "0x10", "1 2"])
def test_what_is_no_number(tmp_path, field):
    path = write(tmp_path, f"a,b\n1,0\n{field},0\n")
    with pytest.raises(DataError, match=r"column 'a'.*row 2"):
        numbers(read_csv(path), "a", path)


def test_blanks_can_stand_for_a_number(tmp_path):
    path = write(tmp_path, "a,b\n1,0\n,0\n")
    assert numbers(read_csv(path), "a", path, blank=7.0).tolist() == [1.0, 7.0]
    assert np.isnan(numbers(read_csv(path), "a", path, blank=np.nan)[1])


def test_unknown_column_suggests_a_near_one(tmp_path):
    path = write(tmp_path, "income,b\n1,0\n")
    with pytest.raises(DataError, match="did you mean 'income'"):
        numbers(read_csv(path), "incom", path)


def test_a_name_has_a_longest_length(tmp_path):
    path = write(tmp_path, f"a,b\n{'x' * 257},0\n")
    with pytest.raises(DataError, match="257 characters"):
        names(read_csv(path), "a", path)
