"""Ill-conditioned least squares, made up: Gaussian features of very unequal variance.

    x_j ~ N(0, v_j),  v_j from `smallest` to 1, evenly spaced in the logarithm
    y = ⟨w, x⟩ + noise · N(0, 1),  w ~ N(0, I / D), the same for train and test

The Hessian of the mean squared error is 2 diag(v) in expectation: condition number 1 / `smallest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from fedsim import seeds
from fedsim.data.columns import to_float32
from fedsim.data.dataset import DataPart, Dataset
from fedsim.parts import Range


@dataclass(frozen=True, kw_only=True)
class IllConditioned(DataPart):
    """Regression of one target on `inputs` features.

    Attributes:
        samples: Of the train set.
        test_samples: Of the test set.
        inputs: D.
        smallest: The smallest variance; the largest is 1.
        noise: Standard deviation of what the features do not explain.
        data_seed: Of the draw; it belongs to the data and not to the scenario's seed.
    """

    samples: Annotated[int, Range(ge=1)] = 20_000
    test_samples: Annotated[int, Range(ge=1)] = 2_000
    inputs: Annotated[int, Range(ge=1)] = 20
    smallest: Annotated[float, Range(gt=0, le=1)] = 1e-3
    noise: Annotated[float, Range(ge=0)] = 0.1
    data_seed: Annotated[int, Range(ge=0, lt=2**32)] = 0

    def load(self) -> Dataset:
        """Draw; see `DataPart.load`."""
        rng = seeds.rng(self.data_seed, 0, seeds.SERVER, "ill-conditioned")
        scale_D = np.sqrt(np.logspace(np.log10(self.smallest), 0, self.inputs))
        weights_D = rng.standard_normal(self.inputs) / np.sqrt(self.inputs)
        total = self.samples + self.test_samples
        x_ND = rng.standard_normal((total, self.inputs)) * scale_D
        y_N1 = (x_ND @ weights_D + self.noise * rng.standard_normal(total))[:, None]
        x, y = (torch.from_numpy(to_float32(v, n)) for v, n in ((x_ND, "x"), (y_N1, "y")))
        return Dataset(
            name="ill_conditioned",
            task="regression",
            train_x=x[: self.samples],
            train_y=y[: self.samples],
            test_x=x[self.samples :],
            test_y=y[self.samples :],
            num_outputs=1,
        )
