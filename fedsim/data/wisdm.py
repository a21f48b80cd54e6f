"""WISDM's raw recordings (Kwapisz et al. 2010; Weiss et al. 2019): `user,activity,time,x,y,z;`.

Both published forms are read: one file of all users, and a folder with one file for each. Entries
end in `;`. The published file of 2010 has some that are cut off; a small share is left out, said
once. Where a user's activity changes, or time runs back, a recording ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from fedsim.data.columns import class_index, text_column, to_float32
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find, read_text
from fedsim.data.streams import StreamSplit, run_ids
from fedsim.errors import DataError
from fedsim.parts import Range

PUBLISHED = "The recordings are at https://www.cis.fordham.edu/wisdm/dataset.php"
FIELDS = 6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WisdmRaw(StreamSplit, DataPart):
    """Windows of one sensor's three axes.

    Attributes:
        root: Data folder; null: the environment variable FEDSIM_DATA.
        file: A file, or a folder of `*.txt`, in `wisdm` below root, or absolute.
        damaged: Share of the entries that may be unreadable, and are left out.
    """

    root: str | None = None
    file: str = "WISDM_ar_v1.1_raw.txt"
    damaged: Annotated[float, Range(ge=0, lt=1)] = 0.001

    def load(self) -> Dataset:
        """Read the entries; see `DataPart.load`."""
        users: list[str] = []
        activities: list[str] = []
        numbers: list[tuple[float, ...]] = []
        for path in _files(self.root, self.file):
            self._read(path, users, activities, numbers)
        user_T = text_column(users, "the users")
        label_T, names = class_index(text_column(activities, "the activities"))
        table_T4 = np.array(numbers, np.float64)
        back_T = np.cumsum(np.diff(table_T4[:, 0], prepend=table_T4[0, 0]) < 0)
        windows = self.windows(
            to_float32(table_T4[:, 1:], "the samples of WISDM"),
            label_T,
            user_T,
            run_ids(user_T, label_T, back_T),
            names,
            "WISDM",
        )
        return self.dataset(windows, "wisdm")

    def _read(
        self,
        path: Path,
        users: list[str],
        activities: list[str],
        numbers: list[tuple[float, ...]],
    ) -> None:
        """Append the entries of one file."""
        good, bad, first = 0, 0, ""
        for line, text in enumerate(read_text(path).splitlines(), start=1):
            for entry in filter(str.strip, text.split(";")):
                fields = [word.strip() for word in entry.rstrip(", \t").split(",")]
                try:
                    values = tuple(float(word) for word in fields[2:])
                except ValueError:
                    values = ()
                if len(fields) != FIELDS or not values or not np.isfinite(values).all():
                    bad += 1
                    first = first or f"line {line}: {entry[:60]!r}"
                    continue
                good += 1
                users.append(fields[0])
                activities.append(fields[1])
                numbers.append(values)
        if not good or bad > self.damaged * (good + bad):
            raise DataError(
                f"data: {bad} of {good + bad} entries of '{path}' are not "
                f"'user,activity,time,x,y,z;' ({first or 'it is empty'}); at most "
                f"data.damaged={self.damaged:g} of them may be, fetch the file again"
            )
        if bad:
            log.warning(
                "%d damaged entries of '%s' are left out, the first in %s", bad, path, first
            )


def _files(root: str | None, name: str) -> list[Path]:
    """Return a file, or those of a folder by their names."""
    if Path(name).is_dir():
        found = sorted(Path(name).rglob("*.txt"))
        if not found:
            raise DataError(f"data: folder '{name}' holds no *.txt. {PUBLISHED}")
        return found
    return [find(root, "wisdm", [name], PUBLISHED)]
