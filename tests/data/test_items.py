"""Items: how texts become numbers, and the data sets of them; small files for the readers."""

import zipfile

import numpy as np
import pytest

from fedsim.data.baby_names import BabyNames
from fedsim.data.items import dataset_of, encoded
from fedsim.data.shakespeare_words import ShakespeareWords
from fedsim.data.zipf import Zipf
from fedsim.errors import ConfigError, DataError


def test_encodings():
    texts = ["Zoë/F", "Zoe\u0308/F", "张伟", ""]
    for encoding in ("hash", "text"):
        codes = encoded(texts, 48, encoding)
        assert codes[0] == codes[1], "one text in two forms of Unicode"
        assert len(set(codes.tolist())) == 3
        assert (codes >= 0).all() and (codes < 2**48).all()
    assert encoded(["abcdefgh"], 48, "text") == int.from_bytes(b"abcdef", "big")
    assert encoded(["0110"], 4, "binary").tolist() == [6]
    assert encoded(["a"], 8, "hash") == encoded(["a"], 16, "hash") >> 8
    with pytest.raises(DataError, match="4 binary digits"):
        encoded(["012"], 4, "binary")
    with pytest.raises(ConfigError, match="multiple of 8"):
        encoded(["a"], 12, "text")


def test_the_truth_is_the_test_set():
    data = dataset_of("x", np.array([5, 3, 5, 7]), np.array([0, 0, 1, 1]), 3)
    assert data.test_x.tolist() == [3, 5, 7]
    assert data.test_y.tolist() == [1, 2, 1]
    assert data.train_y.tolist() == [0, 1, 0, 2]
    assert data.labels().tolist() == [0, 1, 0, 2]
    with pytest.raises(DataError, match="outside"):
        dataset_of("x", np.array([8]), np.array([0]), 3)
    with pytest.raises(DataError, match="no users"):
        dataset_of("x", np.empty(0, np.int64), np.empty(0), 3)


def test_zipf_shares_as_much_popularity_as_it_says():
    def tops(common):
        data = Zipf(sizes=[20_000, 20_000], items=500, bits=16, common=common).load()
        items, party = data.train_x.numpy(), data.columns["party"]
        counts = [np.bincount(items[party == p], minlength=2**16) for p in (0, 1)]
        return [set(np.argsort(-c)[:10].tolist()) for c in counts]

    one, other = tops(1.0)
    assert len(one & other) >= 8
    one, other = tops(0.0)
    assert len(one & other) <= 3
    data = Zipf(sizes=[50_000], items=100, exponent=1.0, common=1.0).load()
    frequency = np.sort(data.test_y.numpy())[::-1] / 50_000
    assert frequency[0] == pytest.approx(1 / sum(1 / r for r in range(1, 101)), abs=0.01)
    again = Zipf(sizes=[50_000], items=100, exponent=1.0, common=1.0).load()
    assert (again.train_x == data.train_x).all()


def test_baby_names_are_births_of_states(tmp_path):
    (tmp_path / "babynames_by_state").mkdir()
    np.savez(
        tmp_path / "babynames_by_state" / "babynames_by_state_1990_2012.npz",
        state=np.array([0, 0, 1, 1]),
        name=np.array([0, 1, 0, 0]),
        year=np.array([1990, 1991, 1990, 1980]),
        count=np.array([3, 2, 4, 9]),
        names=np.array(["Ann/F", "Bob/M"]),
    )
    data = BabyNames(root=str(tmp_path), users=None).load()
    assert len(data.train_x) == 9
    assert dict(zip(data.items.names, data.test_y.tolist(), strict=True)) == {
        "Ann/F": 7,
        "Bob/M": 2,
    }
    assert np.bincount(data.columns["party"]).tolist() == [5, 4]
    assert len(BabyNames(root=str(tmp_path), users=6).load().train_x) == 6
    with pytest.raises(ConfigError, match="users: 10 of 9"):
        BabyNames(root=str(tmp_path), users=10).load()


def test_words_are_users_of_roles(tmp_path):
    (tmp_path / "shakespeare").mkdir()
    path = tmp_path / "shakespeare" / "complete_works_txt.zip"
    play = "\tTITLE\n\nANN\ta queen.\n\nACT I\n\nSCENE I\tA hall.\n\n"
    play += "ANN\tGo, go!\n\t[Exit]\n\tstay\nBOB\tNo\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/play.txt", play)
        archive.writestr("x/sonnets.txt", "no act here\n")
    data = ShakespeareWords(root=str(tmp_path)).load()
    assert dict(zip(data.items.names, data.test_y.tolist(), strict=True)) == {
        "go": 2,
        "stay": 1,
        "no": 1,
    }
    assert sorted(set(data.columns["party"].tolist())) == ["play/ANN", "play/BOB"]
    with pytest.raises(DataError, match=r"lower data\.min_words"):
        ShakespeareWords(root=str(tmp_path), min_words=9).load()
    path.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a zip archive"):
        ShakespeareWords(root=str(tmp_path)).load()
