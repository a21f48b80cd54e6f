"""Phone and watch activity of 23 people (Matey-Sanz, Casteleyn, Granell, Data in Brief 2023).

Five activities (seated, standing up, walking, turning, sitting down) at about 100 Hz: acceleration
and rotation rate in three axes each. Zenodo 10.5281/zenodo.8398688, CC BY 4.0, as one npz file of
streams: `signal` float `[T, C]`, `label`, `subject`, `execution` and `device` int `[T]`, and
`activities`, the names of the labels. Any file of that form is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.data.columns import to_float32
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.data.npz import read_npz
from fedsim.data.streams import StreamSplit, run_ids
from fedsim.errors import DataError

PUBLISHED = "The recordings are at https://doi.org/10.5281/zenodo.8398688"
_INTEGERS = ("label", "subject", "execution", "device")


@dataclass(frozen=True, kw_only=True)
class HarSpSw(StreamSplit, DataPart):
    """Windows of one of the two devices, or of both.

    Attributes:
        root: Data folder; null: the environment variable FEDSIM_DATA.
        file: The npz file, in the folder `har_spsw` below root, or absolute.
        device: `both`: a user's windows are those of either device.
    """

    root: str | None = None
    file: str = "har_spsw.npz"
    device: Literal["phone", "watch", "both"] = "phone"

    def load(self) -> Dataset:
        """Read the file; see `DataPart.load`."""
        path = find(self.root, "har_spsw", [self.file], PUBLISHED)
        arrays = read_npz(path, ["signal", "activities", *_INTEGERS])
        signal, names = arrays["signal"], arrays["activities"]
        if signal.ndim != 2 or signal.dtype.kind != "f" or not signal.size:
            raise DataError(
                f"data: 'signal' of '{path}' is {signal.dtype}{list(signal.shape)}; expected "
                "floating-point samples [T, C]"
            )
        for key in _INTEGERS:
            if arrays[key].shape != signal.shape[:1] or arrays[key].dtype.kind not in "iu":
                raise DataError(
                    f"data: '{key}' of '{path}' is {arrays[key].dtype}{list(arrays[key].shape)}; "
                    f"expected one whole number per sample, [{len(signal)}]"
                )
        label, subject, execution, device = (arrays[k].astype(np.int64) for k in _INTEGERS)
        if names.ndim != 1 or label.min() < 0 or label.max() >= len(names):
            raise DataError(
                f"data: 'label' of '{path}' holds {label.min()} to {label.max()}; expected indices "
                f"of 'activities', of which there are {names.size}"
            )
        if self.device != "both":
            kept = device == ("phone", "watch").index(self.device)
            if not kept.any():
                raise DataError(f"data.device: '{path}' has no samples of device {self.device}")
            signal, label, subject, execution, device = (
                array[kept] for array in (signal, label, subject, execution, device)
            )
        windows = self.windows(
            to_float32(signal, f"'signal' of '{path}'"),
            label,
            subject,
            run_ids(subject, execution, device),
            [str(name) for name in names.tolist()],
            f"'{path}'",
        )
        return self.dataset(windows, "har_spsw")
