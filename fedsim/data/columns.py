"""Table columns as numbers: scaled, finite, classes counted from 0."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fedsim.errors import DataError

MAX_NAME = 256
"""Longest category or user name, in characters: a NumPy text column is as wide as its longest."""

_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)


def standardise(train_ND: np.ndarray, *others_ND: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scale columns to mean 0 and standard deviation 1 of the *train* part, in float64.

    A column that is constant in the train part is only centred.

    Returns:
        The train array and the others, all scaled by the same numbers.
    """
    train_ND = np.asarray(train_ND, np.float64)
    # What overflows here becomes infinite or NaN, and `to_float32` refuses it by name.
    with np.errstate(over="ignore", invalid="ignore"):
        mean_D, std_D = train_ND.mean(axis=0), train_ND.std(axis=0)
        # Rounding leaves a constant column with a spread of a few ulp: not to be blown up.
        std_D = np.where(std_D > 1e-12 * np.abs(mean_D), std_D, 1.0)
        parts = (train_ND, *(np.asarray(other, np.float64) for other in others_ND))
        return tuple((part - mean_D) / std_D for part in parts)


def to_float32(values: np.ndarray, what: str) -> np.ndarray:
    """Return `values` as float32, all finite.

    Args:
        values: Any real numbers, `[N, ...]`.
        what: Names them in the message, e.g. `"column 'age' of 'people.csv'"`.

    Raises:
        DataError: A value is NaN, infinite or beyond the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        result = values.astype(np.float32)
    bad = ~np.isfinite(result)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise DataError(
            f"data: {what} has {int(bad.sum())} values that are NaN, infinite or too large "
            f"(first: {values[first].item()} in sample {first[0]}); fill or remove them"
        )
    return result


def class_index(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the distinct values of a label column 0..C-1 in their sorted order.

    Args:
        values: Labels `[N]`: numbers or strings. Strings that are all whole numbers sort as such.

    Example:
        >>> class_index(np.array(["10", "9", "10"]))
        (array([1, 0, 1]), ('9', '10'))

    Returns:
        The class of each sample, int64 `[N]`, and the C class names.
    """
    if values.dtype.kind == "U" and all(_WHOLE.fullmatch(v) for v in values.tolist()):
        values = np.array([int(v) for v in values.tolist()], np.int64)
    names, index_N = np.unique(values, return_inverse=True)
    return index_N.reshape(-1).astype(np.int64), tuple(str(name) for name in names.tolist())


def text_column(values: Sequence[str], what: str) -> np.ndarray:
    """Return categories, users or labels as one text array `[N]`.

    Args:
        values: At least one.
        what: Names them in the message.

    Raises:
        DataError: A value is longer than `MAX_NAME`.
    """
    longest = max(values, key=len)
    if len(longest) > MAX_NAME:
        raise DataError(
            f"data: {what} has a name of {len(longest)} characters, '{longest[:40]}...'; a "
            f"category, user or label may have {MAX_NAME}"
        )
    # NumPy drops trailing NULs, and two names must not become one.
    return np.array([value.replace("\0", "?") for value in values], np.str_)


def one_hot(values_N: np.ndarray, categories_C: np.ndarray) -> np.ndarray:
    """Return 0/1 codes float64 `[N, C]`; a value that is no category gets all zeros."""
    codes: np.ndarray = values_N[:, None] == categories_C[None, :]
    return codes.astype(np.float64)
