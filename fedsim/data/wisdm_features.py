"""WISDM's transformed windows (Kwapisz et al. 2010): 43 features of ten seconds each, as ARFF.

The columns that say whose a row is and what it shows are named; all other numeric ones are inputs.
A missing feature counts as its mean over the server subjects' windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.data.arff import read_arff
from fedsim.data.columns import class_index, text_column
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.data.streams import SubjectSplit, Windows
from fedsim.data.wisdm import PUBLISHED
from fedsim.errors import DataError


@dataclass(frozen=True, kw_only=True)
class WisdmFeatures(SubjectSplit, DataPart):
    """Features `[D]` of windows.

    Attributes:
        root: Data folder; null: the environment variable FEDSIM_DATA.
        file: The ARFF file, in `wisdm` below root, or absolute.
        user, label: Attributes that say whose a row is, and which activity.
        leave_out: Attributes that are no input, such as a row's number.
    """

    root: str | None = None
    file: str = "WISDM_ar_v1.1_transformed.arff"
    user: str = "user"
    label: str = "class"
    leave_out: list[str] = field(default_factory=lambda: ["UNIQUE_ID"])

    def load(self) -> Dataset:
        """Read the file; see `DataPart.load`."""
        table = read_arff(find(self.root, "wisdm", [self.file], PUBLISHED))
        user = text_column(table.text(self.user), f"attribute '{self.user}'")
        label = text_column(table.text(self.label), f"attribute '{self.label}'")
        other = {self.user, self.label, *self.leave_out}
        inputs = [column for name, column in table.numbers.items() if name not in other]
        if not inputs:
            raise DataError(f"data: '{table.path}' has no numeric attribute beside {sorted(other)}")
        y, names = class_index(label)
        windows = Windows(x=np.stack(inputs, axis=1), y=y, user=user, class_names=names)
        return self.dataset(windows, "wisdm_features")
