import numpy as np
import pytest

from fedsim.errors import ConfigError, DataError
from fedsim.participation.trace import Trace

CSV = "round,client\n1,4\n1,0\n3,2\n3,2\n4,\n"
JSONL = """{"round": 3, "clients": [2, 2]}

{"round": 1, "clients": [4, 0]}
{"round": 4, "clients": []}
"""
COHORTS = [[0, 4], [], [2], []]


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return make


def bind(population, path, **fields):
    return Trace(path=path, **fields).bind(population(5))


@pytest.mark.parametrize(("name", "text"), [("a.csv", CSV), ("a.jsonl", JSONL)])
def test_both_formats_replay_the_rounds(name, text, write, population):
    schedule = bind(population, write(name, text))
    assert [schedule.select(t).tolist() for t in (1, 2, 3, 4)] == COHORTS
    assert schedule.select(2).dtype == np.int64
    assert schedule.rates().tolist() == [0.25, 0, 0.25, 0, 0.25]


def test_windows_line_ends_and_byte_order_mark(write, population):
    text = b"\xef\xbb\xbfround,client\r\n1, 3\r\n"
    assert bind(population, write("a.csv", text)).select(1).tolist() == [3]


def test_after_the_end(write, population):
    path = write("a.csv", CSV)
    repeat = bind(population, path, at_end="repeat")
    assert [repeat.select(t).tolist() for t in range(5, 13)] == COHORTS * 2
    empty = bind(population, path, at_end="empty")
    assert empty.select(4).tolist() == empty.select(5).tolist() == []
    assert empty.select(3).tolist() == [2]
    error = bind(population, path)
    assert error.select(4).tolist() == []
    with pytest.raises(ConfigError, match=r"^at_end: .*round 4 .*round 5; use rounds=4.*repeat"):
        error.select(5)


def test_a_caller_cannot_change_the_trace(write, population):
    schedule = bind(population, write("a.csv", CSV), at_end="repeat")
    schedule.select(1)[:] = 3
    assert schedule.select(1).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "client,round\n1,1\n", r"line 1: the header is 'client,round'"),
        ("a.csv", "", r"line 1: the header is ''"),
        ("a.csv", "round,client\n", r"holds no rounds"),
        ("a.csv", "round,client\n1,2\n2,x\n", r"line 3: '2,x' is not"),
        ("a.csv", "round,client\n1,2,3\n", r"line 2: '1,2,3' is not"),
        ("a.csv", "round,client\n1.5,2\n", r"line 2: '1.5,2' is not"),
        ("a.csv", "round,client\n0,2\n", r"line 2: round 0 is outside 1\.\."),
        ("a.csv", "round,client\n99999999,2\n", r"line 2: round 99999999 is outside"),
        ("a.csv", "round,client\n1,5\n", r"line 2: client 5 is outside 0\.\.4"),
        ("a.csv", "round,client\n1,-1\n", r"line 2: client -1 is outside"),
        ("a.csv", b"round,client\n1,\xff\n", r"not a text file"),
        ("a.csv", b"round,client\n1,\x00\n", r"line 2|not a text file"),
        ("a.jsonl", "", r"holds no rounds"),
        ("a.jsonl", "[1, 2]\n", r"line 1: expected"),
        ("a.jsonl", "3\n", r"line 1: expected"),
        ("a.jsonl", '{"round": 1}\n', r"line 1: expected"),
        ("a.jsonl", '{"round": 1, "clients": 3}\n', r"line 1: expected"),
        ("a.jsonl", '{"round": 1, "clients": [1.0]}\n', r"line 1: expected"),
        ("a.jsonl", '{"round": true, "clients": [1]}\n', r"line 1: expected"),
        ("a.jsonl", '{"round": 1, "clients": ["1"]}\n', r"line 1: expected"),
        ("a.jsonl", '{"round": 1, "clients": [1]}\n{"round"\n', r"line 2: not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", r"line 1: not JSON"),
        ("a.jsonl", '{"round": 1, "clients": [7]}\n', r"line 1: client 7 is outside"),
        ("a.jsonl", '{"round": 1, "clients": [' + "9" * 5000 + "]}\n", r"line 1: "),
    ],
)
def test_damaged_files_name_the_place(name, text, message, write, population):
    with pytest.raises(DataError, match=rf"^path: .*{message}"):
        bind(population, write(name, text))


@pytest.mark.parametrize("path", ["", "no_such.csv", "~no_such_user_at_all/a.csv", ".", "a.txt"])
def test_files_that_cannot_be(path, population):
    with pytest.raises(ConfigError, match=r"^path: "):
        bind(population, path)


def test_a_path_with_a_null_byte(population):
    with pytest.raises(ConfigError, match=r"^path: "):
        bind(population, "a\0.csv")
