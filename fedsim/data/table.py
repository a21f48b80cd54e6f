"""A user's own data: a CSV, npy or npz file, and which of its columns are what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.data.columns import one_hot, standardise, to_float32
from fedsim.data.dataset import DataPart, Dataset, Task
from fedsim.data.files import find
from fedsim.data.split import holdout
from fedsim.data.table_file import TableFile
from fedsim.data.targets import class_targets, value_targets
from fedsim.errors import ConfigError, DataError
from fedsim.parts import Range

_MAX_TOKEN = 2**24
_MAX_CATEGORIES = 4096


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """One part before scaling: numbers `[N, ...]`; categories, targets and other columns `[N]`."""

    inputs: tuple[str, ...]
    numbers: np.ndarray
    categories: dict[str, np.ndarray]
    y: np.ndarray
    columns: dict[str, np.ndarray]

    def take(self, index: np.ndarray) -> _Samples:
        return _Samples(
            inputs=self.inputs,
            numbers=self.numbers[index],
            categories={name: values[index] for name, values in self.categories.items()},
            y=self.y[index],
            columns={name: values[index] for name, values in self.columns.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Table(DataPart):
    """Samples from a CSV file with a header line, an npy table, or the arrays of an npz file.

    The columns of an npy table are named `0`, `1`, ...; those of an npz file are its arrays. CSV
    and npy files may be gzip. A CSV field that is empty or not a number is refused, not filled in.

    Attributes:
        name: For messages and reports, and the folder below `root`.
        root: Data folder; null stands for the environment variable FEDSIM_DATA.
        file: The file: an absolute path, or a name in `root/name` or `root`.
        test_file: The test samples, in the same format. Null: `test_x` and `test_y` if given, else
            `test_fraction` of the samples.
        test_x, test_y: npz only: the arrays that hold the test samples, in the same file.
        test_fraction: Share of the samples kept for testing, rounded up; stratified by class.
        split_seed: Seed of that split; it belongs to the data and not to the scenario's seed.
        task: `classification`: the distinct values of `y` in both parts, sorted, are the classes.
        x: Input columns. Empty stands for all that no other key names (CSV, npy). One npz array is
            taken in its own shape `[N, ...]`; several columns are put side by side.
        y: The target column; for a regression, an npz array may be `[N, k]`.
        categorical: Further input columns, one-hot coded by the values of the train samples and put
            after `x`; other test values are coded as all zeros.
        user: Column kept as `Dataset.columns["user"]`: whose sample it is.
        columns: Columns kept in `Dataset.columns` by their names.
        scale: `standard`: mean 0 and standard deviation 1 of the train samples, column by column;
            `none`; `bytes`: 0..255 divided by 255; `tokens`: whole numbers stay int64, and `y` may
            then be `[N, T]`, one token per position.
        target: Of a regression: `standard` or `none`. The train targets in their own unit are in
            `Dataset.columns["target"]` (where k is 1).
        delimiter: Of a CSV file.
    """

    name: str = "table"
    root: str | None = None
    file: str | None = None
    test_file: str | None = None
    test_x: tuple[str, ...] = ()
    test_y: str | None = None
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.25
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    task: Task = "classification"
    x: tuple[str, ...] = ()
    y: str = "y"
    categorical: tuple[str, ...] = ()
    user: str | None = None
    columns: tuple[str, ...] = ()
    scale: Literal["standard", "none", "bytes", "tokens"] = "standard"
    target: Literal["standard", "none"] = "standard"
    delimiter: str = ","

    def __post_init__(self) -> None:
        """Check the fields, also against each other."""
        super().__post_init__()
        if bool(self.test_x) != (self.test_y is not None) or (self.test_x and self.test_file):
            raise ConfigError(
                f"test_x: {list(self.test_x)} with test_y={self.test_y}, test_file="
                f"{self.test_file}; give test_x and test_y together, and no test_file with them"
            )
        if self.test_x and (self.categorical or len(self.test_x) != len(self.x)):
            raise ConfigError("test_x: it must be as long as x, and categorical must be empty")
        if self.scale in ("bytes", "tokens") and self.categorical:
            raise ConfigError(f"categorical: not with scale={self.scale}; leave it out")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n ':
            raise ConfigError(
                f"delimiter: {self.delimiter!r} is not allowed; expected one character such as , ;"
            )

    def load(self) -> Dataset:
        """Read the file or files, split and scale; see `DataPart.load`."""
        if self.file is None:
            raise ConfigError("data.file: null; give the file to read, data.file=PATH")
        kept = {name: name for name in self.columns}
        if self.user is not None:
            kept["user"] = self.user
        samples = self._read(self.file, self.x, self.y, kept)
        if self.test_file is not None:
            train, test = samples, self._read(self.test_file, samples.inputs, self.y, {})
        elif self.test_y is not None:
            train, test = samples, self._read(self.file, self.test_x, self.test_y, {})
        else:
            one_label = self.task == "classification" and samples.y.size == len(samples.y)
            parts = holdout(
                len(samples.y),
                self.test_fraction,
                self.split_seed,
                samples.y.reshape(-1) if one_label else None,
            )
            train, test = (samples.take(index) for index in parts)
        if train.numbers.shape[1:] != test.numbers.shape[1:]:
            raise DataError(
                f"data: train inputs are {list(train.numbers.shape[1:])}, test inputs "
                f"{list(test.numbers.shape[1:])}; they must have one shape"
            )
        train_x, test_x = self._inputs(train, test)
        columns = dict(train.columns)
        names: tuple[str, ...] = ()
        what = f"target '{self.y}' of '{self.file}'"
        if self.task == "regression":
            train_y, test_y = value_targets(train.y, test.y, self.target, what)
            outputs = train_y.shape[1]
            if outputs == 1:
                columns["target"] = train.y.reshape(-1).astype(np.float64)
        elif self.scale == "tokens" and train.y.ndim == 2:
            train_y, test_y = (_tokens(part.y, what) for part in (train, test))
            outputs = 1 + max(int(part.max()) for part in (train_x, test_x, train_y, test_y))
        else:
            train_y, test_y, names = class_targets(train.y, test.y, what)
            outputs = len(names)
        return Dataset(
            name=self.name,
            task=self.task,
            train_x=train_x,
            train_y=torch.from_numpy(train_y),
            test_x=test_x,
            test_y=torch.from_numpy(test_y),
            num_outputs=outputs,
            columns=columns,
            class_names=names,
        )

    def _read(self, file: str, x: tuple[str, ...], y: str, kept: dict[str, str]) -> _Samples:
        """Read one part: inputs `x`, target `y`, and the columns {name in the data set: source}."""
        path = find(self.root, self.name, [file], "It is your own file (data.file, data.test_file)")
        used = [y, *kept.values(), *self.categorical]
        table = TableFile(path, [*x, *used], self.delimiter)
        x = x or tuple(name for name in table.names if name not in used)
        if not x and not self.categorical:
            raise ConfigError(f"data.x: empty; name the input columns of '{path}', data.x=[NAME]")
        arrays = [table.numbers(name) for name in x]
        for name, values in zip(x, arrays, strict=True):
            to_float32(values, f"column '{name}' of '{path}'")
        if len(arrays) != 1 and any(array.ndim != 1 for array in arrays):
            raise DataError(f"data: {list(x)} of '{path}' are not all [N]; name one array only")
        if len(arrays) == 1 and arrays[0].ndim > 1:
            numbers = arrays[0]
        else:
            numbers = np.stack(arrays, 1) if arrays else np.empty((table.num_samples, 0))
        if numbers.size == 0 and not self.categorical:
            raise DataError(f"data: {list(x)} of '{path}' has no values ({list(numbers.shape)})")
        target = table.numbers(y) if self.task == "regression" else table.values(y)
        columns = {name: table.values(source) for name, source in kept.items()}
        categories = {name: table.values(name) for name in self.categorical}
        for name, values in (columns | categories).items():
            if values.ndim != 1:
                raise DataError(f"data: column '{name}' of '{path}' is not one value per sample")
        return _Samples(inputs=x, numbers=numbers, categories=categories, y=target, columns=columns)

    def _inputs(self, train: _Samples, test: _Samples) -> tuple[Tensor, Tensor]:
        what = f"inputs of '{self.file}'"
        parts = [train.numbers, test.numbers]
        if self.scale == "tokens":
            return _pair([_tokens(part, what) for part in parts])
        parts = [part.astype(np.float64) for part in parts]
        if self.scale == "bytes":
            if any(part.min() < 0 or part.max() > 255 for part in parts):
                raise DataError(f"data: {what} are not all in 0..255, as data.scale=bytes asks for")
            parts = [part / 255 for part in parts]
        elif self.scale == "standard":
            parts = list(standardise(*parts))
        for name, values in train.categories.items():
            codes = np.unique(values)
            if len(codes) > _MAX_CATEGORIES:
                raise DataError(
                    f"data.categorical: '{name}' has {len(codes)} different values, at most "
                    f"{_MAX_CATEGORIES} are coded; is it a user (data.user) or a number (data.x)?"
                )
            parts = [
                np.hstack([part, one_hot(samples.categories[name], codes)])
                for part, samples in zip(parts, (train, test), strict=True)
            ]
        return _pair([to_float32(part, what) for part in parts])


def _tokens(values: np.ndarray, what: str) -> np.ndarray:
    """Return whole numbers in [0, 2**24) as int64; they index an embedding."""
    as_float = values.astype(np.float64) if values.dtype.kind in "biuf" else np.array([np.nan])
    inside = (as_float >= 0) & (as_float < _MAX_TOKEN) & (np.floor(as_float) == as_float)
    if not inside.all():
        raise DataError(f"data: {what} must be whole numbers in [0, {_MAX_TOKEN}) as tokens")
    return as_float.astype(np.int64)


def _pair(parts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])
