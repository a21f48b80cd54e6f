"""Text files that a scenario names, CSV above all: opened and read with errors that say where."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedsim.errors import ConfigError, DataError

MAX_ROWS = 10_000_000
"""More rows mean a damaged file."""


@contextmanager
def opened(path: Path, kind: str) -> Iterator[TextIO]:
    """Open a file in UTF-8, for a part whose key `path` names it.

    Args:
        path: Relative to the working directory.
        kind: What the file should be, for errors: `"a CSV file"`.

    Raises:
        ConfigError: It cannot be read.
        DataError: What is read inside is no text, or no CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigError(
            f"path: '{path}' cannot be read: {error.strerror}; relative paths start at the"
            f" working directory, {Path.cwd()}"
        ) from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"path: {str(path)!r} is not {kind} in UTF-8: {error}") from error


def header_and_rows(path: Path, file: TextIO) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the first row's cells, and an iterator over (where it is, cells) of the others.

    Empty lines are passed over. The iterator raises DataError at a row that is not as long as the
    header, and at the first of too many.
    """
    reader = csv.reader(file)
    header = [cell.strip() for cell in next(reader, [])]

    def rows() -> Iterator[tuple[str, list[str]]]:
        count = 0
        for row in reader:
            if not row:
                continue
            where = f"path: '{path}', line {reader.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} cells; the header has {len(header)}")
            if count == MAX_ROWS:
                raise DataError(f"{where}: more than {MAX_ROWS:,} rows")
            count += 1
            yield where, row

    return header, rows()
