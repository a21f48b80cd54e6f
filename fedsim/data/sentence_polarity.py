"""Sentences of film reviews, positive or negative (Pang and Lee, "Seeing stars", ACL 2005).

The file is `sentence_polarity.zip` as NLTK publishes it (`rt-polarity.pos` and `rt-polarity.neg`,
5331 sentences each, one a line). It is published without a split; ours belongs to each sentence
alone, so that adding or removing one moves no other, and a sentence that occurs twice is never on
two sides:

    u = U(split_seed, sentence) in [0, 1)
    test     u < test_fraction
    public   the first public_fraction of what is left
    private  the rest

Train on `split: public` without privacy, then on `split: private` with it: the two share no
sentence. They do share reviews (the file does not say which sentences come from one review), so the
unit of privacy that this split supports is the sentence.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.data import words
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import MAX_BYTES, find, read_at_most
from fedsim.data.split import keyed_uniform, side_of
from fedsim.errors import DataError
from fedsim.parts import Range

_FILE = "sentence_polarity.zip"
_PUBLISHED = (
    f"'{_FILE}' is published at https://github.com/nltk/nltk_data "
    "(packages/corpora/sentence_polarity.zip)"
)
_CLASSES = {"negative": "neg", "positive": "pos"}


@dataclass(frozen=True, kw_only=True)
class SentencePolarity(DataPart):
    """Word numbers int64 `[N, length]`, and 0 (negative) or 1 (positive).

    The vocabulary never comes from private text (see `fedsim.data.words` for why it must not).
    `Dataset.num_tokens` is `size`, whatever the text holds.

    Attributes:
        name: Name of the data set.
        root: Data folder; null stands for the environment variable FEDSIM_DATA.
        split: Which of the training sentences: `all`, or only those that count as `public` or as
            `private`. The test sentences are the same for all three.
        public_fraction: Share of the training sentences that counts as public.
        test_fraction: Share of all sentences kept for testing.
        split_seed: Keys the split. It is the data's own, not the scenario's.
        vocabulary: `hashed`: a word's number is a hash of it, and words may share one.
            `public_split`: the most frequent words of the public sentences, the others unknown.
        size: Rows of the vocabulary: padding, unknown, and `size - 2` words or buckets.
        length: Words kept of a sentence; shorter ones are padded with token 0, which is an ordinary
            row of the embedding.
    """

    name: str = "sentence_polarity"
    root: str | None = None
    split: Literal["all", "public", "private"] = "all"
    public_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.3
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    vocabulary: Literal["hashed", "public_split"] = "hashed"
    size: Annotated[int, Range(ge=3, le=2**24)] = 4096
    length: Annotated[int, Range(ge=1, le=65536)] = 48

    def load(self) -> Dataset:
        """Read the sentences and number their words; see `DataPart.load`."""
        path = find(self.root, self.name, [_FILE, f"sentiment_panglee/{_FILE}"], _PUBLISHED)
        texts, labels = [], []
        for label, sentences in enumerate(_read(path)):
            texts += sentences
            labels += [label] * len(sentences)
        test_N, public_N = self._sides(texts)
        train_N = ~test_N
        if self.split != "all":
            train_N &= public_N == (self.split == "public")
        for what, chosen in (("training", train_N), ("testing", test_N)):
            if not chosen.any():
                raise DataError(
                    f"data: of the {len(texts)} sentences of '{path}', none is left for {what} "
                    f"with data.split={self.split}, data.public_fraction={self.public_fraction} "
                    f"and data.test_fraction={self.test_fraction}; change one of them"
                )
        vocabulary = None
        if self.vocabulary == "public_split":
            public = (text for text, own in zip(texts, public_N, strict=True) if own)
            vocabulary = words.known(public, self.size)
        x = torch.from_numpy(words.encode(texts, self.size, self.length, vocabulary))
        y = torch.tensor(labels)
        train, test = torch.from_numpy(train_N), torch.from_numpy(test_N)
        return Dataset(
            name=self.name,
            task="classification",
            train_x=x[train],
            train_y=y[train],
            test_x=x[test],
            test_y=y[test],
            num_outputs=len(_CLASSES),
            num_tokens=self.size,
            class_names=tuple(_CLASSES),
        )

    def _sides(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return who is a test sentence, and who a public training sentence, bool `[N]`."""
        uniform_N = keyed_uniform(texts, self.split_seed)
        return side_of(uniform_N, self.test_fraction, self.public_fraction)


def _read(path: Path) -> list[list[str]]:
    """Return the sentences of each class, in the order of `_CLASSES`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name: name for name in archive.namelist()}
            return [_lines(archive, members[f"rt-polarity.{end}"]) for end in _CLASSES.values()]
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise DataError(
            f"data: '{path}' is not a readable archive of rt-polarity.neg and rt-polarity.pos "
            f"({error!r}); {_PUBLISHED}"
        ) from error


def _lines(archive: zipfile.ZipFile, member: str) -> list[str]:
    with archive.open(member) as stream:
        data = read_at_most(stream, MAX_BYTES + 1)  # type: ignore[arg-type]
    if len(data) > MAX_BYTES:
        raise ValueError(f"'{member}' unpacks to more than {MAX_BYTES >> 30} GiB")
    return [line.strip() for line in data.decode("utf-8").split("\n") if line.strip()]
