"""MedMNIST: small medical images in one npz file per data set (Yang et al. 2023, MedMNIST v2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import find
from fedsim.data.images import image_tensors
from fedsim.data.npz import read_npz
from fedsim.errors import DataError

_PUBLISHED = (
    "MedMNIST is published at https://medmnist.com (files: https://zenodo.org/records/10519652)"
)

_KINDS = ("images", "labels")


@dataclass(frozen=True, kw_only=True)
class MedMnist(DataPart):
    """One 2D set of MedMNIST with one label per image: `name.npz` as published.

    `Dataset.columns["label"]` holds the published train labels, also where `binary` merges them.

    Attributes:
        name: Name of the set, of its file and of its folder, e.g. `retinamnist`, `bloodmnist`; the
            larger images of MedMNIST+ are `retinamnist_128` and so on.
        root: Data folder; null stands for the environment variable FEDSIM_DATA. The file is looked
            for in `root/name`, then in `root`.
        with_val: Add the published validation images to the train images, after them.
        binary: Two classes: label 0 against all others (RetinaMNIST: healthy, diseased).
        flat: Give inputs `[C*H*W]` instead of `[C, H, W]`.
        normalise: Scale each channel to mean 0 and standard deviation 1 of the train images, not
            to [0, 1].
    """

    name: str = "retinamnist"
    root: str | None = None
    with_val: bool = False
    binary: bool = False
    flat: bool = False
    normalise: bool = False

    def load(self) -> Dataset:
        """Read the npz file; see `DataPart.load`."""
        path = find(self.root, self.name, [f"{self.name}.npz"], _PUBLISHED)
        parts = ["train", "val", "test"] if self.with_val else ["train", "test"]
        arrays = read_npz(path, [f"{part}_{kind}" for part in parts for kind in _KINDS])
        images, labels = {}, {}
        for part in parts:
            images[part] = _check_images(arrays[f"{part}_images"], f"{part}_images of '{path}'")
            labels[part] = _check_labels(
                arrays[f"{part}_labels"], len(images[part]), f"{part}_labels of '{path}'"
            )
        if len({part.shape[1:] for part in images.values()}) > 1:
            shapes = {name: part.shape[1:] for name, part in images.items()}
            raise DataError(f"data: images of different shapes in '{path}': {shapes}")
        train_names = parts[:-1]
        train_x, test_x = image_tensors(
            np.concatenate([images[part] for part in train_names]),
            images["test"],
            normalise=self.normalise,
            flat=self.flat,
        )
        train_y, test_y = np.concatenate([labels[part] for part in train_names]), labels["test"]
        dataset = Dataset(
            name=self.name,
            task="classification",
            train_x=train_x,
            train_y=torch.from_numpy(train_y),
            test_x=test_x,
            test_y=torch.from_numpy(test_y),
            num_outputs=int(max(train_y.max(), test_y.max())) + 1,
            columns={"label": train_y},
        )
        if not self.binary:
            return dataset
        return replace(
            dataset,
            train_y=(dataset.train_y > 0).to(torch.int64),
            test_y=(dataset.test_y > 0).to(torch.int64),
            num_outputs=2,
            class_names=("0", "not 0"),
        )


def _check_images(images: np.ndarray, what: str) -> np.ndarray:
    grey = images.ndim == 3
    colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (grey or colour) or images.size == 0:
        raise DataError(
            f"data: {what} is {images.dtype} {list(images.shape)}; expected uint8 "
            "[N, height, width] or [N, height, width, 3] (the 3D sets are not supported)"
        )
    return images


def _check_labels(labels: np.ndarray, num_images: int, what: str) -> np.ndarray:
    """Return labels as int64 `[N]`."""
    if labels.dtype.kind not in "iu" or labels.size != num_images or len(labels) != num_images:
        raise DataError(
            f"data: {what} is {labels.dtype} {list(labels.shape)}; expected one whole number for "
            f"each of the {num_images} images (multi-label sets are not supported)"
        )
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(f"data: {what} holds labels outside 0..255")
    return labels.reshape(-1).astype(np.int64)
