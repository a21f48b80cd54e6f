"""UCI Adult: does a person earn more than 50,000 dollars a year? (Becker & Kohavi 1996).

An extract of the 1994 US census: 32,561 train and 16,281 test persons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.data.columns import one_hot, standardise, to_float32
from fedsim.data.csv_columns import Columns, names, numbers, read_named
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.errors import DataError

_PUBLISHED = "Adult is published at https://archive.ics.uci.edu/dataset/2/adult"

ATTRIBUTES = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
)
NUMERIC = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
_CATEGORICAL = tuple(name for name in ATTRIBUTES if name not in NUMERIC)
LABELS = ("<=50K", ">50K")


@dataclass(frozen=True, kw_only=True)
class Adult(DataPart):
    """The 14 attributes as 108 inputs: 6 numbers and 8 one-hot coded categories.

    Numbers are standardised with the train mean and standard deviation. The categories are those of
    the train set; a missing value (`?`) is a category of its own, and a test value that the train
    set lacks is coded as all zeros. Inputs are ordered: the numbers, then the categories, each in
    the order of the file, and each category's values in alphabetical order.

    `Dataset.columns` keeps the eight categories of the train persons as text, by their names with
    underscores (`native_country`, `workclass`, `occupation`, ...), and `age` as a number.

    Attributes:
        root: Data folder; null stands for the environment variable FEDSIM_DATA. `adult.data` and
            `adult.test` are looked for in `root/adult`, then in `root`; as published, or with a
            first line that names the columns.
        fnlwgt: Keep the census weight among the inputs. It says how many people a row stands for,
            and many papers leave it out.
    """

    root: str | None = None
    fnlwgt: bool = True

    def load(self) -> Dataset:
        """Read both files and code them; see `DataPart.load`."""
        train, train_y = read_people(self.root, "adult.data")
        test, test_y = read_people(self.root, "adult.test")
        numeric = [name for name in NUMERIC if name != "fnlwgt" or self.fnlwgt]
        scaled = standardise(*(np.stack([p[n] for n in numeric], 1) for p in (train, test)))
        categories = {name: np.unique(train[name]) for name in _CATEGORICAL}
        train_x, test_x = (
            np.concatenate(
                [numbers_ND, *(one_hot(part[n], categories[n]) for n in _CATEGORICAL)], axis=1
            )
            for numbers_ND, part in zip(scaled, (train, test), strict=True)
        )
        kept = (*_CATEGORICAL, "age")
        return Dataset(
            name="adult",
            task="classification",
            train_x=torch.from_numpy(to_float32(train_x, "adult.data")),
            train_y=torch.from_numpy(train_y),
            test_x=torch.from_numpy(to_float32(test_x, "adult.test")),
            test_y=torch.from_numpy(test_y),
            num_outputs=2,
            columns={name.replace("-", "_"): train[name] for name in kept},
            class_names=LABELS,
        )


def read_people(root: str | None, file: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the attributes of `adult.data` or `adult.test` by name, each `[N]`, and labels `[N]`.

    Raises:
        DataError: The file is missing, or is not Adult's.
    """
    path = find(root, "adult", [file], _PUBLISHED)
    # The published test file starts with the line "|1x3 Cross validator".
    columns: Columns = read_named(path, (*ATTRIBUTES, "label"), skip=("|", "age"))
    attributes = {name: numbers(columns, name, path) for name in NUMERIC}
    for name, values in attributes.items():
        to_float32(values, f"column '{name}' of '{path}'")
    attributes |= {name: names(columns, name, path) for name in _CATEGORICAL}
    # The labels of the test file end in a full stop.
    labels = [label.removesuffix(".") for label in columns["label"]]
    for i, label in enumerate(labels):
        if label not in LABELS:
            raise DataError(
                f"data: '{path}', person {i + 1} has the label {label[:40]!r}; "
                f"expected one of {', '.join(LABELS)}"
            )
    return attributes, np.array([LABELS.index(label) for label in labels], np.int64)
