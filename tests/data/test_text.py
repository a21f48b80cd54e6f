import pytest
import torch

from fedsim.data.text import Text, by_speaker
from fedsim.errors import ConfigError, DataError

PLAY = """Lost words.

ANN:
abcabcabc
abc

Bob Two:
bca

ANN:
cab: no.

no NAME:
is a speech

EVE:

Bob Two:
bb
"""


def load(tmp_path, text=PLAY, **fields):
    (tmp_path / "a.txt").write_bytes(text.encode())
    return Text(name="own", file="a.txt", root=str(tmp_path), **fields).load()


def decode(data, codes):
    return "".join(data.class_names[code] for code in codes.tolist())


def test_speeches():
    assert by_speaker(PLAY) == {
        "ANN": "abcabcabc\nabc\ncab: no.\nno NAME:\nis a speech",
        "Bob Two": "bca\nbb",
    }
    assert by_speaker("no headings\n\nhere") == {}
    assert by_speaker("A:\n\nfirst\n\nsecond") == {"A": "first\nsecond"}


def test_windows_and_targets(tmp_path):
    data = load(tmp_path, length=3, test_fraction=0.25)
    # ANN says 43 characters: 14 windows, of which floor(3.5) are for testing; Bob 6: 1 window.
    assert data.train_x.shape == (12, 3) and data.test_x.shape == (3, 3)
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert decode(data, data.train_x[0]) == "abc" and decode(data, data.train_y[0]) == "bca"
    assert decode(data, data.train_x[3]) == "\nab" and decode(data, data.train_y[3]) == "abc"
    assert decode(data, data.train_x[11]) == "bca" and decode(data, data.train_y[11]) == "ca\n"
    assert decode(data, data.test_x.flatten()) == "s a speec"
    assert decode(data, data.test_y[2]) == "ech"
    assert data.columns["speaker"].tolist() == ["ANN"] * 11 + ["Bob Two"]
    assert data.num_outputs == len(data.class_names) == len(set("".join(by_speaker(PLAY).values())))
    assert list(data.class_names) == sorted(data.class_names)


def test_targets_are_the_next_inputs(tmp_path):
    data = load(tmp_path, length=4, test_fraction=0.3)
    ann = data.columns["speaker"] == "ANN"
    x, y = data.train_x[ann].flatten(), data.train_y[ann].flatten()
    assert torch.equal(x[1:], y[:-1])


def test_whole_text_has_no_speakers(tmp_path):
    data = load(tmp_path, "abcd" * 5, speakers=False, length=4, test_fraction=0.5)
    assert data.columns == {} and data.num_outputs == 4
    assert (
        data.train_x.tolist() == [[0, 1, 2, 3]] * 2 and data.test_x.tolist() == [[0, 1, 2, 3]] * 2
    )
    assert data.train_y[0].tolist() == [1, 2, 3, 0]


def test_windows_line_ends_and_wide_characters(tmp_path):
    data = load(
        tmp_path, "A:\r\n\u00e9\U0001f600\u00e9\U0001f600\u00e9\r\n", length=1, test_fraction=0.5
    )
    assert data.class_names == ("\u00e9", "\U0001f600")
    assert data.train_x.tolist() == [[0], [1]] and data.test_y.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("no headings at all", {}, r"data\.speakers=false"),
        ("", {"speakers": False}, "too short"),
        ("abc", {"speakers": False, "length": 3}, "too short"),
        ("abcd", {"speakers": False, "length": 3}, "too short"),
        (f"{'N' * 300}:\nabcdef\n", {"length": 2, "test_fraction": 0.5}, "300 characters"),
    ],
)
def test_texts_that_cannot_be_cut(tmp_path, text, fields, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, text, **fields)


def test_missing_file_names_the_source(tmp_path):
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt.*karpathy/char-rnn"):
        Text(root=str(tmp_path)).load()


def roles_of(tmp_path, names="ABCDEFGHIJKLMNOP", **fields):
    text = "".join(f"{name}:\n{name * 3}xyxyxyxyxyxy\n\n" for name in names)
    return load(tmp_path, text, length=3, test_fraction=0.3, **fields)


def test_roles_are_public_or_private(tmp_path):
    every, public, private = (roles_of(tmp_path, roles=r) for r in ("all", "public", "private"))
    mine, others = set(public.columns["speaker"]), set(private.columns["speaker"])
    assert not mine & others and mine | others == set(every.columns["speaker"])
    assert 2 <= len(mine) <= 14
    assert len(public.test_x) == len(mine) and len(private.test_x) == len(others)
    for data in (public, private):
        for start in range(0, len(data.train_x), 3):
            name = data.columns["speaker"][start]
            said = decode(data, data.train_x[start : start + 3].flatten())
            assert said == ((name * 3 if data is public else "") + "xyxyxy")


def test_the_alphabet_is_the_public_roles_and_one_token_for_all_else(tmp_path):
    public, private = (roles_of(tmp_path, roles=r) for r in ("public", "private"))
    assert public.class_names == private.class_names and public.class_names[-1] == ""
    assert set(public.class_names[:-1]) == {*public.columns["speaker"], "x", "y"}
    assert public.num_outputs == public.num_tokens == len(public.class_names)
    other = public.num_outputs - 1
    assert not (public.train_x == other).any()
    # Each private role begins with three times its own letter, which no public role says.
    assert ((private.train_x == other).sum() == 3 * len(set(private.columns["speaker"]))).item()


def test_a_role_less_moves_no_other(tmp_path):
    before, after = (
        set(roles_of(tmp_path, names, roles="private").columns["speaker"])
        for names in ("ABCDEFGHIJKLMNOP", "BCDEFGHIJKLMNOP")
    )
    assert after == before - {"A"}


def test_roles_that_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match=r"of the 1 roles.*public_fraction"):
        load(tmp_path, "A:\nabcabc\n", length=1, test_fraction=0.5, roles="public")
    with pytest.raises(ConfigError, match=r"^roles: public needs data\.speakers=true"):
        Text(roles="public", speakers=False)
