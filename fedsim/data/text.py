"""Plain text as next-character prediction, with the speakers of a play as natural users.

The task is that of McMahan et al. 2017 (arXiv:1602.05629, section 3) and of LEAF
(arXiv:1812.01097): predict each next character of what one role says.
Differs from both: windows of a speaker do not overlap, and every position of a window is a
target, not only the last.

Roles can be split into public ones, to train on without privacy first, and private ones. Which side
a role is on belongs to its name alone, so that adding or removing a role moves no other. With such
a split the alphabet is that of the public roles, and one more token stands for every other
character: an alphabet of the private text would tell, without noise, of a character that one role
uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.data.columns import text_column
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find, read_text
from fedsim.data.split import keyed_uniform, side_of
from fedsim.errors import ConfigError, DataError
from fedsim.parts import Range

_PUBLISHED = {
    "shakespeare": "'tinyshakespeare.txt' is published at https://github.com/karpathy/char-rnn "
    "(data/tinyshakespeare/input.txt)",
}

_HEADING = re.compile(r"[A-Z][^\n:]*:")


@dataclass(frozen=True, kw_only=True)
class Text(DataPart):
    """Windows of `length` characters; the target of a position is the character after it.

    Inputs and targets are int64 `[N, length]`, numbered by the sorted characters of the whole text
    (`Dataset.class_names`); with `roles: public` or `private`, by those of the public roles, and
    the last number for all others. Where the text has headings (a line `NAME:` after an empty
    line), the speeches of each name are joined by line ends and cut into windows, and
    `Dataset.columns["speaker"]` names the speaker of each train window. Speakers come in their
    order of appearance, each one's windows in the order of the text; what is left after a
    speaker's last whole window is dropped, and with it speakers of `length` characters or fewer.

    Attributes:
        name: Name of the data set, and of its folder.
        root: Data folder; null stands for the environment variable FEDSIM_DATA.
        file: The text, UTF-8, plain or gzip; looked for in `root/name`, then in `root`.
        length: Characters per window, T.
        speakers: Cut by headings; false takes the text as one, headings included, with no columns.
        test_fraction: Share of each speaker's windows kept for testing, rounded down: the last
            ones, so that no test window lies between train windows.
        roles: Whose windows, to train and to test on: `all`, or only those of the roles that count
            as `public` or as `private`.
        public_fraction: Probability that a role counts as public, by its name.
        split_seed: Keys which do. It is the data's own, not the scenario's.
    """

    name: str = "shakespeare"
    root: str | None = None
    file: str = "tinyshakespeare.txt"
    length: Annotated[int, Range(ge=1, le=65536)] = 80
    speakers: bool = True
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.2
    roles: Literal["all", "public", "private"] = "all"
    public_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.5
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.roles != "all" and not self.speakers:
            raise ConfigError(
                f"roles: {self.roles} needs data.speakers=true, for there are no roles without "
                "headings; type data.roles=all"
            )

    def load(self) -> Dataset:
        """Read the text and cut it into windows; see `DataPart.load`."""
        published = _PUBLISHED.get(self.name, f"'{self.file}' is your own file (data.file)")
        path = find(self.root, self.name, [self.file], published)
        text = read_text(path).replace("\r\n", "\n")
        speeches = by_speaker(text) if self.speakers else {"": text}
        if not speeches:
            raise DataError(
                f"data: '{path}' has no headings (a line 'NAME:' after an empty line); for a text "
                "without speakers set data.speakers=false"
            )
        codes, alphabet = self._encode_roles(speeches, str(path))
        train, test, speaker = [], [], []
        for name, code_L in codes.items():
            count = (len(code_L) - 1) // self.length
            if count < 1:
                continue
            # Targets are the inputs moved by one, so neighbouring windows share one character.
            x_NT = code_L[: count * self.length].reshape(count, self.length)
            y_NT = code_L[1 : count * self.length + 1].reshape(count, self.length)
            cut = count - int(count * self.test_fraction + 1e-9)
            train.append((x_NT[:cut], y_NT[:cut]))
            test.append((x_NT[cut:], y_NT[cut:]))
            speaker += [name] * cut
        if sum(len(x) for x, _ in train) == 0 or sum(len(x) for x, _ in test) == 0:
            raise DataError(
                f"data: '{path}' is too short for windows of {self.length} characters and a test "
                f"part of {self.test_fraction}; lower data.length or raise data.test_fraction"
            )
        train_x, train_y, test_x, test_y = (
            torch.from_numpy(np.concatenate([pair[i] for pair in part]))
            for part in (train, test)
            for i in (0, 1)
        )
        return Dataset(
            name=self.name,
            task="classification",
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            num_outputs=len(alphabet),
            num_tokens=None if self.roles == "all" else len(alphabet),
            columns={"speaker": text_column(speaker, f"'{path}'")} if self.speakers else {},
            class_names=alphabet,
        )

    def _encode_roles(
        self, speeches: dict[str, str], path: str
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Return the codes `[L]` of each chosen role, and the alphabet."""
        if self.roles == "all":
            return _encode(speeches)
        uniform_R = keyed_uniform(list(speeches), self.split_seed)
        _, public_R = side_of(uniform_R, 0.0, self.public_fraction)
        sides = dict(zip(speeches, public_R.tolist(), strict=True))
        public = {name: text for name, text in speeches.items() if sides[name]}
        chosen = {
            name: text for name, text in speeches.items() if sides[name] == (self.roles == "public")
        }
        if not public or not chosen:
            raise DataError(
                f"data: of the {len(speeches)} roles of '{path}', {len(public)} are public with "
                f"data.public_fraction={self.public_fraction}; both sides need one, change it"
            )
        alphabet = "".join(sorted(set("".join(public.values()))))
        return _encode(chosen, alphabet)


def by_speaker(text: str) -> dict[str, str]:
    r"""Return what each speaker says, speeches joined by line ends, in the order of appearance.

    A heading is a line `NAME:`, its first letter a capital, at the start of the text or after an
    empty line; the speech lasts until the next heading. Text before the first one is left out.

    Example:
        >>> by_speaker("Ann:\nYes.\n\nBob:\nNo.\n\nAnn:\nWell.\n")
        {'Ann': 'Yes.\nWell.', 'Bob': 'No.'}
    """
    speeches: dict[str, list[str]] = {}
    speaker = None
    for block in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        heading, _, speech = block.partition("\n")
        if _HEADING.fullmatch(heading.strip()):
            speaker = heading.strip()[:-1]
        else:
            speech = block
        if speaker is not None and speech:
            speeches.setdefault(speaker, []).append(speech)
    return {name: "\n".join(parts) for name, parts in speeches.items()}


def _encode(
    texts: dict[str, str], alphabet: str | None = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Number the characters of all texts; return int64 codes `[L]` per text, and the alphabet.

    Args:
        texts: What to number.
        alphabet: In sorted order; characters outside get one number more, named "". None stands for
            that of the texts, which has nothing outside.
    """
    points = {k: np.frombuffer(v.encode("utf-32-le"), "<u4") for k, v in texts.items()}
    if alphabet is None:
        known = np.unique(np.concatenate(list(points.values())))
    else:
        known = np.frombuffer(alphabet.encode("utf-32-le"), "<u4")
    codes = {}
    for name, point_L in points.items():
        code_L = np.searchsorted(known, point_L)
        is_known_L = known[np.minimum(code_L, len(known) - 1)] == point_L
        codes[name] = np.where(is_known_L, code_L, len(known)).astype(np.int64)
    names = tuple(chr(point) for point in known.tolist())
    return codes, names if alphabet is None else (*names, "")
