"""Weka's ARFF files, as much of them as data sets are published in: dense rows, numbers and names.

    @relation name
    @attribute 'column' numeric | real | integer | string | {a, b, c}
    @data
    1.5,a,?          % a comment; ? is a missing value

Sparse rows and dates are refused.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data.files import read_text
from fedsim.errors import DataError, did_you_mean

_NUMBERS = {"numeric", "real", "integer"}


@dataclass(frozen=True, kw_only=True)
class Arff:
    """Columns by name.

    Attributes:
        path: The file.
        numbers: Numeric columns, float64 `[N]`, NaN where a value is missing.
        names: The others, text.
        allowed: The values that a nominal column may have.
    """

    path: Path
    numbers: dict[str, np.ndarray]
    names: dict[str, list[str]]
    allowed: dict[str, tuple[str, ...]]

    def text(self, name: str) -> list[str]:
        """Return a column as text, whole numbers without a fraction.

        Raises:
            DataError: There is no such column, or a value is missing.
        """
        if name in self.numbers:
            column = self.numbers[name]
            values = ["?" if np.isnan(v) else f"{v:g}" for v in column.tolist()]
        elif name in self.names:
            values = self.names[name]
        else:
            known = [*self.numbers, *self.names]
            raise DataError(
                f"data: '{self.path}' has no attribute '{name}'; it has {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
        if "?" in values:
            raise DataError(f"data: attribute '{name}' of '{self.path}' has missing values")
        return values


def read_arff(path: Path) -> Arff:
    """Read a file, plain or gzip.

    Raises:
        DataError: It is no such file; the message has the line.
    """
    columns: list[tuple[str, str]] = []
    rows: list[list[str]] = []
    data = False
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        text = text.strip()
        if not text or text.startswith("%"):
            continue
        if data:
            row = _row(path, line, text)
            if len(row) != len(columns):
                raise DataError(
                    f"data: line {line} of '{path}' has {len(row)} values; expected {len(columns)}"
                )
            rows.append(row)
            continue
        word = text.split(maxsplit=1)[0].lower()
        if word == "@attribute":
            columns.append(_attribute(path, line, text))
        elif word == "@data":
            data = True
        elif word != "@relation":
            raise DataError(f"data: line {line} of '{path}' is {text[:40]!r}; expected @attribute")
    known = [name for name, _ in columns]
    if not rows or not columns or len(set(known)) < len(known):
        raise DataError(
            f"data: '{path}' has {len(columns)} attributes and {len(rows)} rows; expected some of "
            "both, each attribute once"
        )
    return _columns(path, columns, rows)


def _attribute(path: Path, line: int, text: str) -> tuple[str, str]:
    """Return (name, type) of an attribute's declaration."""
    rest = text.split(maxsplit=1)[1:] or [""]
    body = rest[0].strip()
    if body[:1] in {"'", '"'}:
        name, _, kind = body[1:].partition(body[0])
    else:
        name, _, kind = body.partition("{") if "{" in body.split(" ")[0] else body.partition(" ")
        kind = "{" + kind if "{" in body.split(" ")[0] else kind
    name, kind = name.strip(), kind.strip()
    nominal = kind.startswith("{") and kind.endswith("}")
    if not name or not (nominal or kind.lower() in {*_NUMBERS, "string"}):
        raise DataError(
            f"data: line {line} of '{path}' declares {text[:60]!r}; expected @attribute NAME and "
            "numeric, string or {value, ...}"
        )
    return name, kind if nominal else kind.lower()


def _row(path: Path, line: int, text: str) -> list[str]:
    quote = "'" if "'" in text else '"'
    try:
        row = next(csv.reader([text], quotechar=quote, skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration) as error:
        raise DataError(f"data: line {line} of '{path}' is no row ({error})") from error
    return [value.strip() for value in row]


def _columns(path: Path, columns: list[tuple[str, str]], rows: list[list[str]]) -> Arff:
    numbers: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    allowed: dict[str, tuple[str, ...]] = {}
    for place, (name, kind) in enumerate(columns):
        values = [row[place] for row in rows]
        if kind in _NUMBERS:
            try:
                column = np.array([np.nan if v == "?" else float(v) for v in values])
            except ValueError as error:
                raise DataError(f"data: attribute '{name}' of '{path}': {error}") from error
            if np.isinf(column).any():
                raise DataError(f"data: attribute '{name}' of '{path}' holds infinite values")
            numbers[name] = column
            continue
        names[name] = values
        if kind != "string":
            allowed[name] = tuple(_row(path, 0, kind[1:-1]))
            odd = next((v for v in values if v != "?" and v not in allowed[name]), None)
            if odd is not None:
                raise DataError(
                    f"data: attribute '{name}' of '{path}' is {odd[:40]!r}, which is none of "
                    f"{', '.join(allowed[name])[:200]}"
                )
    return Arff(path=path, numbers=numbers, names=names, allowed=allowed)
