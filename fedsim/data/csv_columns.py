"""CSV files as columns of text, and those as numbers or names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedsim.data.columns import text_column
from fedsim.data.files import read_text
from fedsim.errors import DataError, did_you_mean

Columns = dict[str, list[str]]


def read_csv(path: Path, delimiter: str = ",") -> Columns:
    """Return the columns of a CSV file whose first line names them; blank lines are skipped.

    Args:
        path: The file, plain or gzip, UTF-8.
        delimiter: One character.

    Raises:
        DataError: Not a CSV file, two columns of one name, or a row of another length than the
            header; the message has the line.
    """
    rows = read_rows(path, delimiter)
    header = next(rows, (0, []))[1]
    if not header or len(set(header)) < len(header):
        raise DataError(
            f"data: the first line of '{path}' must name the columns, each once; it is "
            f"{_shorten(header)}"
        )
    return _transpose(path, header, rows)


def read_named(path: Path, header: Sequence[str], skip: Sequence[str]) -> Columns:
    """Return the columns of a comma-separated file that does not name them itself.

    Args:
        path: The file, plain or gzip, UTF-8.
        header: The columns' names.
        skip: A row is left out if its first field starts with one of these.

    Raises:
        DataError: Not a CSV file, or a row of another length than `header`.
    """
    rows = read_rows(path, ",")
    kept = ((line, row) for line, row in rows if not row[0].startswith(tuple(skip)))
    return _transpose(path, header, kept)


def read_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of each line that is not blank; fields are stripped of spaces."""
    lines = io.StringIO(read_text(path), newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if len(fields) > 1 or any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"data: '{path}', line {reader.line_num}: {error}") from error


def _transpose(path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]) -> Columns:
    table = []
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"data: '{path}', line {line} has {len(row)} fields, expected {len(header)} "
                f"({_shorten(list(header))}); the file is damaged, or its delimiter is another"
            )
        table.append(row)
    if not table:
        raise DataError(f"data: '{path}' holds no rows below its header")
    return dict(zip(header, map(list, zip(*table, strict=True)), strict=True))


def column(columns: Columns, name: str, path: Path) -> list[str]:
    """Return one column.

    Raises:
        DataError: There is none of that name.
    """
    if name not in columns:
        raise DataError(
            f"data: '{path}' has no column '{name}'; it has {_shorten(list(columns))}"
            f"{did_you_mean(name, columns)}"
        )
    return columns[name]


def numbers(columns: Columns, name: str, path: Path, *, blank: float | None = None) -> np.ndarray:
    """Return one column as float64 `[N]`.

    Args:
        columns: The columns of the file.
        name: Which column.
        path: The file, for messages.
        blank: What an empty field stands for; None refuses it.

    Raises:
        DataError: A field is not a number; the message has the row.
    """
    values = column(columns, name, path)
    result = np.empty(len(values), np.float64)
    for i, value in enumerate(values):
        try:
            # float() takes "1_000" for a number, which no writer of CSV files means.
            result[i] = blank if not value and blank is not None else float(value.replace("_", "?"))
        except ValueError as error:
            raise DataError(
                f"data: column '{name}' of '{path}', row {i + 1}: {_shorten(value)} is not a number"
            ) from error
    return result


def names(columns: Columns, name: str, path: Path) -> np.ndarray:
    """Return one column as text `[N]`, for categories and users.

    Raises:
        DataError: There is no such column, or a field is too long for a name.
    """
    return text_column(column(columns, name, path), f"column '{name}' of '{path}'")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
