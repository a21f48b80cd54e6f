"""UCI Adult as 123 binary inputs, in the layout of LIBSVM's a9a (Platt 1999).

Each attribute becomes a block of 0/1 inputs, one per interval or category, in the order of the
file; a person has at most one 1 in a block, and none where the value is missing (`?`):

    age 5, workclass 8, fnlwgt 5, education 16, education-num 5, marital-status 7, occupation 14,
    relationship 6, race 5, sex 2, capital-gain 2, capital-loss 2, hours-per-week 5,
    native-country 41

Differs from a9a: Platt's cuts are not published with it. Here numbers are cut at the quintiles of
the train persons (hours: five intervals around the 40 that half of them work), gains and losses
into none and some.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.data.adult import ATTRIBUTES, LABELS, NUMERIC, read_people
from fedsim.data.columns import one_hot
from fedsim.data.dataset import DataPart, Dataset

PARTS = 5
FIXED = {
    "education-num": (8.0, 9.0, 10.0, 12.0),
    "capital-gain": (0.0,),
    "capital-loss": (0.0,),
    "hours-per-week": (25.0, 39.0, 40.0, 50.0),
}
"""Upper ends of all intervals but the last, where quantiles are no use: most values are equal."""


@dataclass(frozen=True, kw_only=True)
class AdultBinary(DataPart):
    """Sparse binary classification: 123 inputs of the published files, about 14 of them 1.

    Intervals and categories are those of the train set.

    Attributes:
        root: Data folder; null stands for the environment variable FEDSIM_DATA. The files are those
            of `Adult`.
    """

    root: str | None = None

    def load(self) -> Dataset:
        """Read both files and code them; see `DataPart.load`."""
        train, train_y = read_people(self.root, "adult.data")
        test, test_y = read_people(self.root, "adult.test")
        blocks: list[tuple[np.ndarray, np.ndarray]] = []
        for name in ATTRIBUTES:
            values = (train[name], test[name])
            if name in NUMERIC:
                cuts = FIXED.get(name) or np.quantile(train[name], np.arange(1, PARTS) / PARTS)
                # An interval is open below and closed above.
                index = [np.searchsorted(np.asarray(cuts), v, side="left") for v in values]
                kinds = np.arange(len(cuts) + 1)
                blocks.append((one_hot(index[0], kinds), one_hot(index[1], kinds)))
            else:
                known = np.unique(train[name])
                known = known[known != "?"]
                blocks.append((one_hot(values[0], known), one_hot(values[1], known)))
        train_x, test_x = (np.concatenate(part, axis=1) for part in zip(*blocks, strict=True))
        return Dataset(
            name="adult_binary",
            task="classification",
            train_x=torch.from_numpy(train_x.astype(np.float32)),
            train_y=torch.from_numpy(train_y),
            test_x=torch.from_numpy(test_x.astype(np.float32)),
            test_y=torch.from_numpy(test_y),
            num_outputs=2,
            class_names=LABELS,
        )
