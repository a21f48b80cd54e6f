import gzip
import io

import pytest

from fedsim.data import files
from fedsim.errors import DataError


def test_own_folder_comes_before_the_root_itself(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "a.csv").write_text("root")
    (tmp_path / "set" / "a.csv.gz").write_bytes(gzip.compress(b"own"))
    assert files.find(str(tmp_path), "set", ["a.csv"], "") == tmp_path / "set" / "a.csv.gz"
    assert files.find(str(tmp_path), "other", ["b.csv", "a.csv"], "") == tmp_path / "a.csv"


def test_root_comes_before_the_environment_variable(tmp_path, monkeypatch):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "a").write_text("")
    (tmp_path / "a").write_text("")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "env"))
    assert files.find(None, "set", ["a"], "") == tmp_path / "env" / "a"
    assert files.find(str(tmp_path), "set", ["a"], "") == tmp_path / "a"


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_set(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("FEDSIM_DATA", raising=False)
    else:
        monkeypatch.setenv("FEDSIM_DATA", value)
    with pytest.raises(DataError, match=r"'a\.csv'.*FEDSIM_DATA.*data\.root="):
        files.find(None, "set", ["a.csv"], "published")


def test_missing_file_says_which_where_and_whence(tmp_path):
    with pytest.raises(DataError) as caught:
        files.find(str(tmp_path), "set", ["a.csv", "b.csv"], "Set is published at https://x.org")
    message = str(caught.value)
    for part in ("'a.csv' or 'b.csv'", f"'{tmp_path / 'set'}'", f"'{tmp_path}'", "https://x.org"):
        assert part in message


def test_absolute_name_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    file = tmp_path / "a.csv"
    file.write_text("")
    assert files.find(None, "set", [str(file)], "") == file
    with pytest.raises(DataError, match=r"no\.csv.*your own"):
        files.find(None, "set", [str(tmp_path / "no.csv")], "It is your own file")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match="missing"):
        files.find(str(tmp_path), "set", ["a.csv"], "")


@pytest.mark.parametrize("name", ["plain.gz", "packed.txt"])
def test_content_decides_about_gzip(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"text" if name == "plain.gz" else gzip.compress(b"te") + gzip.compress(b"xt"))
    assert files.read_text(path) == "text"


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(b"text" * 100)
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    no_deflate = whole[:10] + b"\xff" * 20
    for data in (whole[:-9], flipped, whole[:12], whole + b"junk", no_deflate):
        (tmp_path / "a.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.gz"):
            files.read_text(tmp_path / "a.gz")


def test_text_is_utf8_without_its_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfb\xc3\xa9\r\n")
    assert files.read_text(path) == "b\xe9\r\n"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match="byte 3"):
        files.read_text(path)


def test_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"x" * 1000))
    assert len(files.read_text(path)) == 1000
    path.write_bytes(gzip.compress(b"x" * 1001))
    with pytest.raises(DataError, match="unpacks to more"):
        files.read_text(path)


def test_read_at_most_never_asks_for_more_than_a_chunk():
    class Stream(io.BytesIO):
        asked = 0

        def read(self, size):
            Stream.asked = max(Stream.asked, size)
            return super().read(size)

    assert files.read_at_most(Stream(b"abc"), 2**60) == b"abc"
    assert Stream.asked <= 2**20
    assert files.read_at_most(Stream(b"abc"), 2) == b"ab"
