import zipfile

import pytest
import torch

from fedsim.data import words
from fedsim.data.sentence_polarity import SentencePolarity
from fedsim.data.split import keyed_uniform
from fedsim.errors import DataError

POSITIVE = [f"a good film number {i} ." for i in range(40)] + ["it is what it is"]
NEGATIVE = [f"a bad film number {100 + i} !" for i in range(40)] + ["it is what it is"]


def write(folder, positive=POSITIVE, negative=NEGATIVE):
    with zipfile.ZipFile(folder / "sentence_polarity.zip", "w") as archive:
        archive.writestr("sentence_polarity/README.txt", "about")
        for end, lines in (("pos", positive), ("neg", negative)):
            text = "".join(f"{line} \n" for line in lines)
            archive.writestr(f"sentence_polarity/rt-polarity.{end}", text)


@pytest.fixture
def load(tmp_path):
    write(tmp_path)
    return lambda **fields: SentencePolarity(root=str(tmp_path), length=6, **fields).load()


def rows(x):
    return {tuple(row) for row in x.tolist()}


def test_shapes_and_labels(load):
    data = load(size=500)
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert len(data.train_x) + len(data.test_x) == 82
    assert data.num_outputs == 2 and data.num_tokens == 500
    assert data.class_names == ("negative", "positive")
    good, bad = words.hashed("good", 500), words.hashed("bad", 500)
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert ((x == good).any(1) <= (y == 1)).all() and ((x == bad).any(1) <= (y == 0)).all()


def test_public_and_private_are_apart_and_tested_alike(load):
    every, public, private = (load(split=split) for split in ("all", "public", "private"))
    assert len(public.train_x) + len(private.train_x) == len(every.train_x)
    assert not rows(public.train_x) & rows(private.train_x)
    assert not rows(every.train_x) & rows(every.test_x)  # the sentence of both classes, too
    assert torch.equal(public.test_x, private.test_x) and torch.equal(public.test_x, every.test_x)
    assert 4 <= len(public.train_x) <= 34  # 0.24 of 82, four standard deviations


def test_one_sentence_less_moves_no_other(load, tmp_path):
    before = load(split="private")
    gone = before.train_x[0]
    write(
        tmp_path,
        [s for s in POSITIVE if row_of(s) != gone.tolist()],
        [s for s in NEGATIVE if row_of(s) != gone.tolist()],
    )
    after = load(split="private")
    assert torch.equal(after.train_x, before.train_x[1:])
    assert torch.equal(after.test_x, before.test_x)


def row_of(sentence):
    return words.encode([sentence], 4096, 6)[0].tolist()


def test_no_private_word_has_a_number_of_its_own(load, tmp_path):
    public = load(split="public", vocabulary="public_split")
    private = load(split="private", vocabulary="public_split")
    assert not (public.train_x == words.UNKNOWN).any()
    # Every private sentence but "it is what it is" holds its own number, which no public one says.
    assert ((private.train_x == words.UNKNOWN).sum(1) == 1).sum() >= len(private.train_x) - 2
    # Private sentences of a frequent new word move no token of any other sentence.
    new = [f"zyzzyva zyzzyva {i}" for i in range(30)]
    uniform = keyed_uniform(new, 0)
    new = [s for s, u in zip(new, uniform, strict=True) if u > 0.44]  # 0.2 + 0.8 * 0.3: private
    write(tmp_path, [*POSITIVE, *new])
    again = load(split="private", vocabulary="public_split")
    assert torch.equal(again.train_x[: -len(new)], private.train_x)
    assert (again.train_x[-len(new) :, :2] == words.UNKNOWN).all()


def test_padding_and_cutting(tmp_path):
    write(tmp_path, ["one two three"] * 3, ["four"])
    part = SentencePolarity(root=str(tmp_path), length=2, test_fraction=0.5, split_seed=4)
    data = part.load()
    x = torch.cat([data.train_x, data.test_x])
    assert sorted(rows(x)) == sorted(
        [(words.hashed("one", 4096), words.hashed("two", 4096)), (words.hashed("four", 4096), 0)]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip", "is not a readable archive"), (None, r"sentence_polarity\.zip.*nltk_data")],
)
def test_files_that_are_wrong_or_missing(tmp_path, content, message):
    if content is not None:
        (tmp_path / "sentence_polarity.zip").write_bytes(content)
    with pytest.raises(DataError, match=message):
        SentencePolarity(root=str(tmp_path)).load()


def test_too_few_sentences(tmp_path):
    write(tmp_path, ["one"], [])
    with pytest.raises(DataError, match=r"none is left for .*data\.split=all"):
        SentencePolarity(root=str(tmp_path)).load()
    with zipfile.ZipFile(tmp_path / "sentence_polarity.zip", "w") as archive:
        archive.writestr("rt-polarity.pos", "one\n")
    with pytest.raises(DataError, match=r"rt-polarity\.neg"):
        SentencePolarity(root=str(tmp_path)).load()
