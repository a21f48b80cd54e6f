"""Sentences as rows of word numbers: a vocabulary that no private text has shaped, and padding.

A vocabulary counted on the training text is itself a release of that text: that a rare name has a
row of the embedding at all says that somebody wrote it, whatever noise the training then adds, and
removing one record can change the shape of the model. So a word's number comes from the word alone
(`hashed`), or from a text that is public (`known`).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PAD, UNKNOWN = 0, 1
"""Numbers of what follows a sentence's end, and of a word that the vocabulary does not hold."""

_FIRST = 2
_WORD = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")


def words(sentence: str) -> list[str]:
    """Return the words and marks of a sentence in lower case.

    Example:
        >>> words("It's a well-made film , no ?")
        ["it's", 'a', 'well-made', 'film', ',', 'no', '?']
    """
    return _WORD.findall(sentence.lower())


def known(sentences: Iterable[str], size: int) -> dict[str, int]:
    """Number the most frequent words of a *public* text 2, 3, ..., size - 1.

    Words of equal count come in alphabetical order.
    """
    counts = Counter(word for sentence in sentences for word in words(sentence))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: _FIRST + i for i, word in enumerate(ranked[: size - _FIRST])}


def hashed(word: str, size: int) -> int:
    """Return the bucket of a word in [2, size), by its CRC-32; words may share one."""
    return _FIRST + zlib.crc32(word.encode()) % (size - _FIRST)


def encode(
    sentences: Sequence[str], size: int, length: int, vocabulary: Mapping[str, int] | None = None
) -> np.ndarray:
    """Return int64 word numbers `[N, length]`, cut or padded at the end.

    Args:
        sentences: N texts.
        size: Word numbers are in [0, size).
        length: Words kept of each.
        vocabulary: From `known`; None stands for `hashed`.
    """
    numbers_NT = np.full((len(sentences), length), PAD, np.int64)
    for row, sentence in zip(numbers_NT, sentences, strict=True):
        kept = words(sentence)[:length]
        row[: len(kept)] = [
            hashed(word, size) if vocabulary is None else vocabulary.get(word, UNKNOWN)
            for word in kept
        ]
    return numbers_NT
