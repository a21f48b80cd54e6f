"""The four real data sets that scikit-learn carries; they need no download.

Origin: digits, breast_cancer and wine are the UCI repository's "Optical Recognition of Handwritten
Digits" (its test part), "Breast Cancer Wisconsin (Diagnostic)" and "Wine"; diabetes is from Efron,
Hastie, Johnstone & Tibshirani, "Least Angle Regression", Annals of Statistics 32 (2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from fedsim.data.columns import standardise, to_float32
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.split import holdout
from fedsim.errors import ConfigError
from fedsim.parts import Range

Name = Literal["digits", "breast_cancer", "wine", "diabetes"]


@dataclass(frozen=True, kw_only=True)
class Bundled(DataPart):
    """A data set bundled with scikit-learn, split here into train and test (stratified by class).

    | name | samples | inputs | target |
    | --- | --- | --- | --- |
    | digits | 1797 | 8x8 pixels of 0..16, divided by 16 | 10 digits, or even/odd |
    | breast_cancer | 569 | 30, standardised | malignant, benign |
    | wine | 178 | 13, standardised | 3 cultivars |
    | diabetes | 442 | 10, standardised | disease progression after a year, standardised |

    "Standardised" means with the mean and standard deviation of the *train* samples. The diabetes
    target keeps its scale in `Dataset.columns["target"]`, the train targets in their own unit: with
    `t = columns["target"]`, a prediction p is `p * t.std() + t.mean()` in that unit, and a mean
    squared error is multiplied by `t.var()`. For digits, `columns["digit"]` holds the train digits.

    Attributes:
        name: Which of the four.
        test_fraction: Share of the samples kept for testing, rounded up to whole samples.
        split_seed: Seed of the split; it belongs to the data and not to the scenario's seed.
        image: Digits only: give inputs `[1, 8, 8]` instead of `[64]`.
        labels: Digits only: `parity` has two classes, even (0) and odd (1).
    """

    name: Name = "digits"
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.25
    split_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    image: bool = False
    labels: Literal["digit", "parity"] = "digit"

    def __post_init__(self) -> None:
        """Check the fields; those of the digits must be at their defaults elsewhere."""
        super().__post_init__()
        if self.name != "digits" and (self.image or self.labels != "digit"):
            field = "image" if self.image else "labels"
            raise ConfigError(
                f"{field}: {getattr(self, field)!r} is for data=digits only, and this is "
                f"data={self.name}; leave it out"
            )

    def load(self) -> Dataset:
        """Load from scikit-learn, split and scale; see `DataPart.load`."""
        from sklearn import datasets  # imported here: it takes a second

        bunch = getattr(datasets, f"load_{self.name}")()
        x_ND, target_N = np.asarray(bunch.data), np.asarray(bunch.target)
        if self.name == "digits":
            return self._digits(x_ND / 16, target_N.astype(np.int64))
        regression = self.name == "diabetes"
        train, test = holdout(
            len(x_ND), self.test_fraction, self.split_seed, None if regression else target_N
        )
        train_x, test_x = standardise(x_ND[train], x_ND[test])
        if regression:
            y_N1 = target_N[:, None]
            train_y, test_y = (to_float32(y, "y") for y in standardise(y_N1[train], y_N1[test]))
        else:
            train_y, test_y = (target_N[part].astype(np.int64) for part in (train, test))
        names = () if regression else tuple(str(name) for name in bunch.target_names)
        return Dataset(
            name=self.name,
            task="regression" if regression else "classification",
            train_x=torch.from_numpy(to_float32(train_x, "x")),
            train_y=torch.from_numpy(train_y),
            test_x=torch.from_numpy(to_float32(test_x, "x")),
            test_y=torch.from_numpy(test_y),
            num_outputs=1 if regression else len(names),
            columns={"target": target_N[train].astype(np.float64)} if regression else {},
            class_names=names,
        )

    def _digits(self, x_ND: np.ndarray, digit_N: np.ndarray) -> Dataset:
        # Stratified by digit also for parity, so that both are tested on the same samples.
        train, test = holdout(len(x_ND), self.test_fraction, self.split_seed, digit_N)
        parity = self.labels == "parity"
        y_N = digit_N % 2 if parity else digit_N
        x = torch.from_numpy(x_ND.astype(np.float32))
        x = x.reshape(-1, 1, 8, 8) if self.image else x
        return Dataset(
            name="digits",
            task="classification",
            train_x=x[train],
            train_y=torch.from_numpy(y_N[train]),
            test_x=x[test],
            test_y=torch.from_numpy(y_N[test]),
            num_outputs=2 if parity else 10,
            columns={"digit": digit_N[train]},
            class_names=("even", "odd") if parity else tuple("0123456789"),
        )
