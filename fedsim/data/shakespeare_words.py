"""Words of Shakespeare's roles: every word that a role says is a user of that role, with the word.

The file is a zip archive of plays as plain text. A line `ROLE<tab>text` starts a speech, lines
`<tab>text` go on with it; stage directions in brackets are left out, and so is all before the first
line `ACT I`. Files without such a line (poems) are left out. The list of words is taken as public:
it stands for a dictionary.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import numpy as np

from fedsim.data.columns import text_column
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import MAX_BYTES, find, read_at_most
from fedsim.data.items import MOST_BITS, Encoding, dataset_of, encoded
from fedsim.errors import DataError
from fedsim.parts import Range

_FILE = "complete_works_txt.zip"
_PUBLISHED = (
    f"'{_FILE}' holds the texts of https://github.com/martin-gorner/tensorflow-rnn-shakespeare "
    "(shakespeare/*.txt)"
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


@dataclass(frozen=True, kw_only=True)
class ShakespeareWords(DataPart):
    """One word said a user; column `party` is the play and role.

    Attributes:
        root: Data folder; null stands for the environment variable FEDSIM_DATA.
        min_words: Roles that say fewer words are left out.
        min_length: Shorter words are left out.
        bits: M.
        encoding: See `fedsim.data.items`.
    """

    root: str | None = None
    min_words: Annotated[int, Range(ge=1)] = 1
    min_length: Annotated[int, Range(ge=1)] = 1
    bits: Annotated[int, Range(ge=1, le=MOST_BITS)] = 48
    encoding: Encoding = "hash"

    def load(self) -> Dataset:
        """Read the plays; see `DataPart.load`."""
        path = find(self.root, "shakespeare", [_FILE], _PUBLISHED)
        roles: dict[str, list[str]] = {}
        for play, text in _texts(path):
            for role, line in speeches(text):
                words = (word.lower() for word in _WORD.findall(line))
                own = roles.setdefault(f"{play}/{role}", [])
                own += (word for word in words if len(word) >= self.min_length)
        roles = {role: words for role, words in roles.items() if len(words) >= self.min_words}
        if not roles:
            raise DataError(
                f"data: '{path}' has no role that says {self.min_words} words; lower data.min_words"
            )
        vocabulary = sorted({word for words in roles.values() for word in words})
        place = {word: i for i, word in enumerate(vocabulary)}
        codes = encoded(vocabulary, self.bits, self.encoding)
        said = np.array([place[w] for words in roles.values() for w in words], np.int64)
        party = text_column(list(roles), f"'{path}'")
        known: dict[int, str] = {}
        for code, word in zip(codes.tolist(), vocabulary, strict=True):
            known.setdefault(code, word)
        return dataset_of(
            "shakespeare_words",
            codes[said],
            np.repeat(party, [len(words) for words in roles.values()]),
            self.bits,
            known,
            listed=np.unique(codes),
        )


def speeches(text: str) -> Iterator[tuple[str, str]]:
    r"""Yield (role, line) of a play.

    Example:
        >>> list(speeches("ACT I\n\nBERNARDO\tWho's there?\n\n\t[Exit]\n\tSpeak!\n"))
        [('BERNARDO', "Who's there?"), ('BERNARDO', 'Speak!')]
    """
    _, begun, rest = re.sub(r"\r\n?", "\n", text).partition("\nACT I")
    if not begun and text.startswith("ACT I"):
        rest = text
    role = ""
    for line in re.sub(r"\[[^\]]*\]", "", rest).split("\n"):
        name, tab, said = line.partition("\t")
        if not tab:
            continue
        if name.strip():
            role = "" if re.match(r"(ACT|SCENE)\b", name) else name.strip()
        if role and said.strip():
            yield role, said.strip()


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the plays in an archive, in the order of their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            left = MAX_BYTES
            for name in sorted(archive.namelist()):
                if name.endswith(".txt"):
                    with archive.open(name) as stream:
                        data = read_at_most(cast(BinaryIO, stream), left)
                    left -= len(data)
                    yield Path(name).stem, data.decode("utf-8", "replace")
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise DataError(
            f"data: '{path}' is not a zip archive of texts ({type(error).__name__}: {error}). "
            f"{_PUBLISHED}"
        ) from error
