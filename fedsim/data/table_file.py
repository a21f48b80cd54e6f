"""A user's own file as named columns, whatever its format: CSV, npy or npz."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedsim.data import csv_columns
from fedsim.data.npz import read_npy, read_npz
from fedsim.errors import DataError, did_you_mean


class TableFile:
    """Named columns of one file; every column has the same number of samples N.

    Args:
        path: `*.npz`: each array is a column `[N, ...]`; `*.npy`: one array `[N, D]`, whose columns
            are named `0` to `D-1`; anything else: CSV with a header line. CSV and npy files may be
            gzip.
        wanted: The columns that will be asked for; an npz file is read no further. For the other
            formats it may be empty.
        delimiter: Of a CSV file.

    Attributes:
        names: The columns' names, in the order of the file (npz: those wanted).
        num_samples: N.
    """

    def __init__(self, path: Path, wanted: Iterable[str], delimiter: str) -> None:
        """Read the file."""
        self.path = path
        kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        self._text: csv_columns.Columns = {}
        self._arrays: dict[str, np.ndarray] = {}
        if kind == ".npz":
            self._arrays = read_npz(path, list(dict.fromkeys(wanted)))
        elif kind == ".npy":
            array = read_npy(path)
            if array.ndim != 2:
                raise DataError(
                    f"data: '{path}' has shape {list(array.shape)}; expected a table [N, D]. "
                    "Put arrays of other shapes in an npz file, inputs and targets by name"
                )
            self._arrays = {str(i): array[:, i] for i in range(array.shape[1])}
        else:
            self._text = csv_columns.read_csv(path, delimiter)
        self.names = list(self._text or self._arrays)
        lengths = {
            name: len(self._text[name]) if self._text else self._length(name) for name in self.names
        }
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(
                f"data: '{path}' has columns of these lengths: {lengths or 'none'}; expected one "
                "length for all, and at least one sample"
            )
        self.num_samples = lengths[self.names[0]]

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers `[N, ...]`: float64 from CSV, else as stored.

        Raises:
            DataError: There is no such column, or it holds text.
        """
        if self._text:
            return csv_columns.numbers(self._text, name, self.path)
        array = self._array(name)
        if array.dtype.kind not in "biuf":
            raise DataError(f"data: column '{name}' of '{self.path}' holds text, expected numbers")
        return array

    def values(self, name: str) -> np.ndarray:
        """Return a column `[N, ...]` of labels, categories or users: text from CSV, else as stored.

        Raises:
            DataError: There is no such column.
        """
        if self._text:
            return csv_columns.names(self._text, name, self.path)
        return self._array(name)

    def _length(self, name: str) -> int:
        array = self._arrays[name]
        return len(array) if array.ndim else 0

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise DataError(
                f"data: '{self.path}' has no column '{name}'; it has {', '.join(self._arrays)}"
                f"{did_you_mean(name, self._arrays)}"
            )
        return self._arrays[name]
