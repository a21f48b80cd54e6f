"""Label and target columns of any source as the tensors that `Dataset` asks for."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.data.columns import class_index, standardise, to_float32
from fedsim.errors import DataError


def class_targets(
    train_N: np.ndarray, test_N: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Number the classes of both parts together.

    Args:
        train_N: Labels `[N]` or `[N, 1]`: text, whole numbers, or whole numbers stored as floats.
        test_N: The same, of the test set.
        what: Names the column in messages.

    Returns:
        The classes of both parts, int64 `[N]`, and the class names in sorted order.

    Raises:
        DataError: Not one label per sample, or fractions.
    """
    parts = []
    for labels in (train_N, test_N):
        if labels.size != len(labels):
            raise DataError(
                f"data: {what} has shape {list(labels.shape)}; expected one label per sample"
            )
        labels = labels.reshape(-1)
        if labels.dtype.kind == "f":
            if (
                not (np.isfinite(labels) & (np.floor(labels) == labels)).all()
                or (np.abs(labels) > 2**53).any()
            ):
                raise DataError(
                    f"data: {what} holds fractions, and data.task is classification; "
                    "give whole numbers or text, or set data.task=regression"
                )
            labels = labels.astype(np.int64)
        parts.append(labels)
    if (parts[0].dtype.kind == "U") != (parts[1].dtype.kind == "U"):
        raise DataError(f"data: {what} is text in one part and numbers in the other")
    index, names = class_index(np.concatenate(parts))
    return index[: len(parts[0])], index[len(parts[0]) :], names


def value_targets(
    train: np.ndarray, test: np.ndarray, scale: Literal["standard", "none"], what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets of a regression as float32 `[N, k]`.

    Args:
        train: Numbers `[N]` or `[N, k]`.
        test: The same, of the test set.
        scale: `standard`: by the mean and standard deviation of the train part.
        what: Names the column in messages.

    Raises:
        DataError: Not numbers, not finite, or of more than two dimensions.
    """
    for values in (train, test):
        if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
            raise DataError(
                f"data: {what} is {values.dtype} {list(values.shape)}, and data.task is "
                "regression; expected numbers [N] or [N, k]"
            )
        to_float32(values, what)
    if train.reshape(len(train), -1).shape[1] != test.reshape(len(test), -1).shape[1]:
        raise DataError(f"data: {what} has another width in the test part than in the train part")
    parts = [values.reshape(len(values), -1).astype(np.float64) for values in (train, test)]
    if scale == "standard":
        parts = list(standardise(*parts))
    train_y, test_y = (to_float32(values, what) for values in parts)
    return train_y, test_y
