"""Table columns as numbers: scaled, finite, classes counted from 0."""

from __future__ import annotations

import re

import numpy as np

from fedsim.errors import DataError

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
            f"(first: {values[first]!r} in sample {first[0]}); fill or remove them"
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
