"""Folders in the form of UCI HAR (Anguita et al. 2013): one text file per channel, already cut.

    root/<folder>/{train,test}/Inertial Signals/<channel>_{train,test}.txt   N lines of W numbers
    root/<folder>/{train,test}/{y,subject}_{train,test}.txt                  N lines of one number
    root/<folder>/activity_labels.txt                                        "<number> <name>"

The published halves are put together: who is the server's, and who tests, is decided here. In the
published windows, neighbours share half of their samples; `stride: 2` takes every second one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find, read_text
from fedsim.data.streams import SubjectSplit, Windows
from fedsim.errors import DataError
from fedsim.parts import Range

PUBLISHED = "The folder is at https://archive.ics.uci.edu/dataset/240"


@dataclass(frozen=True, kw_only=True)
class UciHar(SubjectSplit, DataPart):
    """Windows `[W, C]` of such a folder.

    Attributes:
        root: Data folder; null: the environment variable FEDSIM_DATA.
        folder: Below root, or absolute.
        channels: The files' names without `_train.txt`.
        stride: Every how many-th window of a half is taken.
    """

    root: str | None = None
    folder: str = "UCI HAR Dataset"
    channels: list[str] = field(
        default_factory=lambda: [
            f"{kind}_{axis}" for kind in ("total_acc", "body_gyro") for axis in "xyz"
        ]
    )
    stride: Annotated[int, Range(ge=1)] = 2

    def load(self) -> Dataset:
        """Read the folder; see `DataPart.load`."""
        labels = find(self.root, self.folder, ["activity_labels.txt"], PUBLISHED)
        names = _names(labels)
        halves = [self._half(labels.parent, half) for half in ("train", "test")]
        x, number, user = (np.concatenate(parts) for parts in zip(*halves, strict=True))
        known = np.array(sorted(names))
        unknown = ~np.isin(number, known)
        if unknown.any():
            raise DataError(
                f"data: activity {number[unknown][0]} of '{labels.parent}' is not in "
                f"'{labels}', which has {known.tolist()}"
            )
        windows = Windows(
            x=x,
            y=np.searchsorted(known, number),
            user=user,
            class_names=tuple(names[key] for key in known.tolist()),
        )
        return self.dataset(windows, "uci_har")

    def _half(self, folder: Path, half: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return one half's windows `[N, W, C]`, activities and subjects `[N]`."""
        y, user = (
            _whole(_existing(folder / half / f"{what}_{half}.txt")) for what in ("y", "subject")
        )
        signals = [
            _numbers(_existing(folder / half / "Inertial Signals" / f"{channel}_{half}.txt"))
            for channel in self.channels
        ]
        shapes = {channel: s.shape for channel, s in zip(self.channels, signals, strict=True)}
        if len({*shapes.values()}) != 1 or len(signals[0]) != len(y) or len(y) != len(user):
            raise DataError(
                f"data: '{folder / half}' has channels {shapes}, {len(y)} activities and "
                f"{len(user)} subjects; expected one line per window in every file"
            )
        own = slice(None, None, self.stride)
        return np.stack(signals, axis=2)[own], y[own], user[own]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data: file '{path}' is missing. {PUBLISHED}")
    return path


def _names(path: Path) -> dict[int, str]:
    """Return number -> name of the activities."""
    names: dict[int, str] = {}
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        number, _, name = text.strip().partition(" ")
        if not text.strip():
            continue
        if not (number.isascii() and number.isdigit() and len(number) < 10 and name.strip()):
            raise DataError(f"data: line {line} of '{path}' is {text[:40]!r}; expected '1 WALKING'")
        names[int(number)] = name.strip()
    if not names:
        raise DataError(f"data: '{path}' names no activity")
    return names


def _numbers(path: Path) -> np.ndarray:
    """Return a text file of numbers, as many in each line, as float32 `[N, W]`."""
    rows: list[np.ndarray] = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = np.array(text.split(), dtype=np.float64)
        except ValueError as error:
            raise DataError(f"data: line {line} of '{path}' is no numbers ({error})") from error
        if not len(row) or (rows and len(row) != len(rows[0])) or not np.isfinite(row).all():
            wanted = f"{len(rows[0])} finite numbers" if rows else "finite numbers"
            raise DataError(f"data: line {line} of '{path}' has {len(row)}; expected {wanted}")
        rows.append(row)
    if not rows:
        raise DataError(f"data: '{path}' is empty")
    return np.stack(rows)


def _whole(path: Path) -> np.ndarray:
    column = _numbers(path)
    if column.shape[1] != 1 or (column != np.round(column)).any() or (np.abs(column) > 2**31).any():
        raise DataError(f"data: '{path}' does not hold one whole number in each line")
    return column[:, 0].astype(np.int64)
