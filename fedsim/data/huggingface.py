"""Any data set of the Hugging Face hub, or a local folder of files, through flwr-datasets.

Only the download and the splits are flwr-datasets' (Flower's own loader, extra `data`); who gets
which samples is decided by the `partition` group, as for every other source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.data.columns import standardise, text_column, to_float32
from fedsim.data.dataset import DataPart, Dataset, Task
from fedsim.data.images import image_tensors
from fedsim.data.split import holdout
from fedsim.data.targets import class_targets, value_targets
from fedsim.errors import ConfigError, DataError, did_you_mean
from fedsim.parts import Range


class Split(Protocol):
    """What is used of a `datasets.Dataset`."""

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Types of the columns; that of a label has the class names as `names`."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, column: str, /) -> Iterable[Any]:
        """Return one column."""

    def select(self, indices: range, /) -> Split:
        """Return the samples of these indices."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(DataPart):
    """Columns of a Hugging Face data set as inputs and targets.

    Inputs by what the column holds: images become float `[C, H, W]` in [0, 1] (all of one size;
    greyscale stays one channel); numbers, lists and arrays of numbers become floats `[...]`,
    several columns of numbers side by side; text becomes int64 `[length]`, its UTF-8 bytes counted
    from 1, cut or filled up with 0 (257 symbols).

    Attributes:
        dataset: Name on the hub, e.g. `ylecun/mnist`; or a format (`csv`, `parquet`,
            `imagefolder`) together with `data_dir`.
        subset: Name of a configuration of that data set.
        revision: Commit or tag on the hub; fix it for results that are to be repeated.
        data_dir: Local folder of files.
        train_split, test_split: Names of the splits; a null `test_split` takes `test_fraction` of
            the train split instead.
        test_fraction: Share for testing, rounded up, stratified by class.
        split_seed: Seed of that split; it belongs to the data and not to the scenario's seed.
        train_limit, test_limit: Keep the first so many samples of a split; null keeps all. The
            first samples of a split that is sorted by class are of one class.
        task: `classification` or `regression`; the latter's target is standardised, and its train
            values are kept in `Dataset.columns["target"]` in their own unit.
        x: Input columns.
        y: Target column.
        columns: Columns kept in `Dataset.columns` by their names, e.g. a natural user.
        normalise: Scale images (by channel) and numbers (by column) to mean 0 and standard
            deviation 1 of the train samples.
        length: Bytes of a text that are kept.
    """

    dataset: str = "ylecun/mnist"
    subset: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.25
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    train_limit: Annotated[int, Range(ge=1)] | None = None
    test_limit: Annotated[int, Range(ge=1)] | None = None
    task: Task = "classification"
    x: tuple[str, ...] = ("image",)
    y: str = "label"
    columns: tuple[str, ...] = ()
    normalise: bool = False
    length: Annotated[int, Range(ge=1, le=65536)] = 128

    def load(self) -> Dataset:
        """Load the splits through flwr-datasets and convert them; see `DataPart.load`."""
        try:
            from flwr_datasets import FederatedDataset
        except ImportError as error:
            raise ConfigError(
                f"data: Hugging Face data sets need flwr-datasets ({error}); install it with "
                "pip install 'fedsim-lab[data]'"
            ) from error
        given = {"revision": self.revision, "data_dir": self.data_dir}
        options = {name: value for name, value in given.items() if value is not None}
        try:
            source = FederatedDataset(
                dataset=self.dataset, subset=self.subset, partitioners={}, shuffle=False, **options
            )
            names = (self.train_split, self.test_split)
            train, test = (None if name is None else source.load_split(name) for name in names)
        except Exception as error:  # a hub can fail in any way: network, access, names, disk
            raise DataError(
                f"data: Hugging Face data set '{self.dataset}' cannot be loaded "
                f"({type(error).__name__}: {error}). It is published at "
                f"https://huggingface.co/datasets/{self.dataset}; check data.dataset, data.subset, "
                "the split names, and the network"
            ) from error
        return self.convert(cast(Split, train), cast("Split | None", test))

    def convert(self, train: Split, test: Split | None) -> Dataset:
        """Make the data set from splits that are in memory already.

        Args:
            train: The train split.
            test: The test split; None takes `test_fraction` of the train split.

        Raises:
            DataError: A column is missing, empty, or of no kind that is understood.
        """
        names = _class_names(train, self.y)
        train_columns = self._columns(train, self.train_limit, (*self.x, self.y, *self.columns))
        if test is not None:
            test_columns = self._columns(test, self.test_limit, (*self.x, self.y))
        else:
            y_N = train_columns[self.y]
            strata = y_N if self.task == "classification" and y_N.ndim == 1 else None
            parts = holdout(len(y_N), self.test_fraction, self.split_seed, strata)
            train_columns, test_columns = (
                {name: values[index] for name, values in train_columns.items()} for index in parts
            )
        train_x, test_x = self._inputs(train_columns, test_columns)
        kept = {name: self._short(name, train_columns) for name in self.columns}
        train_y, test_y = (self._short(self.y, part) for part in (train_columns, test_columns))
        what = f"column '{self.y}' of '{self.dataset}'"
        if self.task == "regression":
            raw = train_y
            train_y, test_y = value_targets(train_y, test_y, "standard", what)
            if train_y.shape[1] == 1:
                kept["target"] = raw.reshape(-1).astype(np.float64)
            outputs = train_y.shape[1]
        elif names and all(_are_classes(part, len(names)) for part in (train_y, test_y)):
            train_y, test_y = train_y.astype(np.int64), test_y.astype(np.int64)
            outputs = len(names)
        else:
            train_y, test_y, names = class_targets(train_y, test_y, what)
            outputs = len(names)
        return Dataset(
            name=self.dataset,
            task=self.task,
            train_x=train_x,
            train_y=torch.from_numpy(train_y),
            test_x=test_x,
            test_y=torch.from_numpy(test_y),
            num_outputs=outputs,
            columns=kept,
            class_names=() if self.task == "regression" else names,
        )

    def _columns(
        self, split: Split, limit: int | None, wanted: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """Return the wanted columns, each `[N, ...]`: uint8 images, numbers, or text."""
        if limit is not None and limit < len(split):
            split = split.select(range(limit))
        if len(split) == 0 or not self.x:
            raise DataError(f"data: '{self.dataset}' has an empty split, or data.x is empty")
        for name in wanted:
            if name not in split.column_names:
                raise DataError(
                    f"data: '{self.dataset}' has no column '{name}'; it has "
                    f"{', '.join(split.column_names)}{did_you_mean(name, split.column_names)}"
                )
        return {name: _array(split[name], f"'{name}' of '{self.dataset}'") for name in wanted}

    def _inputs(
        self, train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        what = f"inputs {list(self.x)} of '{self.dataset}'"
        parts = [[columns[name] for name in self.x] for columns in (train, test)]
        shapes = [[array.shape[1:] for array in arrays] for arrays in parts]
        if shapes[0] != shapes[1] or (len(self.x) > 1 and any(shapes[0])):
            raise DataError(
                f"data: {what} have the shapes {shapes[0]} (train) and {shapes[1]} (test); "
                "expected the same in both, and single numbers where there are several columns"
            )
        arrays_flat = [array for arrays in parts for array in arrays]
        if len(self.x) == 1:
            first, other = arrays_flat
            if first.dtype == other.dtype == np.uint8 and first.ndim in (3, 4):
                return image_tensors(first, other, normalise=self.normalise, flat=False)
            if first.dtype.kind == other.dtype.kind == "O":
                return self._tokens(first), self._tokens(other)
        if any(array.dtype.kind == "O" for array in arrays_flat):
            raise DataError(f"data: {what} mix text with numbers, or are several texts; name one")
        values = [
            (arrays[0] if len(arrays) == 1 and arrays[0].ndim > 1 else np.stack(arrays, axis=1))
            for arrays in parts
        ]
        for value in values:
            to_float32(value, what)
        if self.normalise:
            values = list(standardise(*values))
        train_x, test_x = (torch.from_numpy(to_float32(value, what)) for value in values)
        return train_x, test_x

    def _short(self, name: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a column of labels or users; texts become a text array."""
        values = columns[name]
        if values.dtype.kind != "O":
            return values
        return text_column(values.tolist(), f"column '{name}' of '{self.dataset}'")

    def _tokens(self, texts_N: np.ndarray) -> Tensor:
        codes_NT = np.zeros((len(texts_N), self.length), np.int64)
        for row, text in zip(codes_NT, texts_N.tolist(), strict=True):
            code = np.frombuffer(text.encode("utf-8", "replace")[: self.length], np.uint8)
            row[: len(code)] = code.astype(np.int64) + 1
        return torch.from_numpy(codes_NT)


def _class_names(split: Split, column: str) -> tuple[str, ...]:
    feature = split.features.get(column)
    return tuple(str(name) for name in getattr(feature, "names", None) or ())


def _are_classes(labels: np.ndarray, num_classes: int) -> bool:
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    return whole and bool(((labels >= 0) & (labels < num_classes)).all())


def _array(column: Iterable[Any], what: str) -> np.ndarray:
    """Return a column as one array: text as objects `[N]`, images as uint8 `[N, H, W(, 3)]`."""
    values = list(column)
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)  # as wide as each text, not as the longest
    if hasattr(values[0], "convert") and hasattr(values[0], "mode"):
        mode = "L" if values[0].mode in ("1", "L") else "RGB"
        values = [np.asarray(image.convert(mode), np.uint8) for image in values]
    try:
        array = np.array(values)
    except ValueError as error:
        raise DataError(
            f"data: the values of {what} differ in shape; bring them to one size first"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"data: {what} holds {type(values[0]).__name__} values or gaps; expected images, "
            "numbers, lists of numbers, or text"
        )
    return array
