"""California housing: median house values of 20,640 block groups, 1990 census (Pace & Barry 1997).

Reads the CSV file of "Hands-On Machine Learning", which adds to the original the column
`ocean_proximity` and blanks 207 values of `total_bedrooms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.data.columns import one_hot, standardise, to_float32
from fedsim.data.csv_columns import column, names, numbers, read_csv
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.data.split import holdout
from fedsim.errors import DataError
from fedsim.parts import Range

_PUBLISHED = (
    "This file is published at https://github.com/ageron/handson-ml2 (datasets/housing); the "
    "original data at https://lib.stat.cmu.edu/datasets/houses.zip lacks a column"
)

_NUMERIC = (
    "longitude",
    "latitude",
    "housing_median_age",
    "total_rooms",
    "total_bedrooms",
    "population",
    "households",
    "median_income",
)
_TOTALS = ("total_rooms", "total_bedrooms", "population")
_TARGET = "median_house_value"


@dataclass(frozen=True, kw_only=True)
class CaliforniaHousing(DataPart):
    """Eight standardised inputs, and one target that is scaled as `target` says.

    Blank bedroom counts are filled with the median of the train samples; every mean, standard
    deviation and maximum is that of the train samples.

    `Dataset.columns` of the train samples: `ocean_proximity` (text: a natural party),
    `longitude` and `latitude` in degrees, and `target`, the house values in dollars. The scale of
    the target is recovered from it: with `t = columns["target"]`, y is
    `(t - t.mean()) / t.std()` for `standard`, the same of `log(t)` for `log`, `t / t.max()` for
    `max`.

    Attributes:
        root: Data folder; null stands for the environment variable FEDSIM_DATA. `housing.csv` is
            looked for in `root/california_housing`, then in `root`.
        features: `per_household` divides rooms, bedrooms and people by the households, as
            scikit-learn's version of the data does for rooms and people (its bedrooms, too, are
            per household); `totals` takes the columns as they are. Eight inputs either way.
        ocean_proximity: Append its five one-hot codes to the inputs (13 inputs).
        target: `standard` (mean 0, standard deviation 1), `log` (the same of the logarithm), or
            `max` (divided by the largest train value, as in the DIFF2 experiments).
        test_fraction: Share of the samples kept for testing, rounded up.
        split_seed: Seed of the split; it belongs to the data and not to the scenario's seed.
    """

    root: str | None = None
    features: Literal["per_household", "totals"] = "per_household"
    ocean_proximity: bool = False
    target: Literal["standard", "log", "max"] = "standard"
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def load(self) -> Dataset:
        """Read the file, split, fill and scale; see `DataPart.load`."""
        path = find(self.root, "california_housing", ["housing.csv"], _PUBLISHED)
        columns = read_csv(path)
        blanks = {"total_bedrooms": np.nan}
        raw = {name: numbers(columns, name, path, blank=blanks.get(name)) for name in _NUMERIC}
        value_N = numbers(columns, _TARGET, path)
        ocean_N = names(columns, "ocean_proximity", path)
        train, test = holdout(len(value_N), self.test_fraction, self.split_seed)
        bedrooms_N = raw["total_bedrooms"]
        known_N = bedrooms_N[train][~np.isnan(bedrooms_N[train])]
        blank_N = np.array([not field for field in column(columns, "total_bedrooms", path)])
        bedrooms_N[blank_N] = np.median(known_N) if len(known_N) else np.nan
        for name, values in (*raw.items(), (_TARGET, value_N)):
            to_float32(values, f"column '{name}' of '{path}'")
        if (value_N <= 0).any() or (raw["households"] <= 0).any():
            raise DataError(f"data: '{path}' has house values or household counts that are not > 0")
        if self.features == "per_household":
            with np.errstate(over="ignore"):  # to_float32 refuses it by name
                raw |= {name: raw[name] / raw["households"] for name in _TOTALS}
        x_ND = np.stack([raw[name] for name in _NUMERIC], axis=1)
        train_x, test_x = standardise(x_ND[train], x_ND[test])
        if self.ocean_proximity:
            categories = np.unique(ocean_N[train])
            train_x = np.hstack([train_x, one_hot(ocean_N[train], categories)])
            test_x = np.hstack([test_x, one_hot(ocean_N[test], categories)])
        train_y, test_y = self._scale(value_N[train, None], value_N[test, None])
        return Dataset(
            name="california_housing",
            task="regression",
            train_x=torch.from_numpy(to_float32(train_x, str(path))),
            train_y=torch.from_numpy(to_float32(train_y, _TARGET)),
            test_x=torch.from_numpy(to_float32(test_x, str(path))),
            test_y=torch.from_numpy(to_float32(test_y, _TARGET)),
            num_outputs=1,
            columns={
                "ocean_proximity": ocean_N[train],
                "longitude": raw["longitude"][train],
                "latitude": raw["latitude"][train],
                "target": value_N[train],
            },
        )

    def _scale(self, train_N1: np.ndarray, test_N1: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.target == "max":
            return train_N1 / train_N1.max(), test_N1 / train_N1.max()
        if self.target == "log":
            train_N1, test_N1 = np.log(train_N1), np.log(test_N1)
        return standardise(train_N1, test_N1)
