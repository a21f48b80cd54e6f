"""IDX files, the format of MNIST and of the sets that copied its layout, gzip or plain.

An IDX file is: two zero bytes; one byte for the element type; one byte for the number d of
dimensions; d sizes, each a big-endian 32-bit unsigned integer; then the elements, big-endian, row
by row. Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", "File formats".
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.files import MAX_BYTES, find, opened, read_at_most
from fedsim.data.images import image_tensors
from fedsim.errors import DataError
from fedsim.parts import Range

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_PUBLISHED = {
    "mnist": "MNIST is published at http://yann.lecun.com/exdb/mnist/ "
    "(mirror: https://ossci-datasets.s3.amazonaws.com/mnist/)",
    "fashion_mnist": "Fashion-MNIST is published at "
    "https://github.com/zalandoresearch/fashion-mnist (folder data/fashion)",
}

_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}

# Both sets have the same file names and sizes; the MD5 of the train labels tells them apart.
_LABELS_MD5 = {
    "a25bea736e30d166cdddb491f175f624": "mnist",
    "9018921c3c673c538a1fc5bad174d6f9": "fashion_mnist",
}


@dataclass(frozen=True, kw_only=True)
class Idx(DataPart):
    """Images and labels in four IDX files, e.g. `train-images-idx3-ubyte` (as `.gz` or plain).

    Attributes:
        name: Name of the data set, and of its folder. For `mnist` and `fashion_mnist` the classes
            have names, and the one is refused where the other is asked for.
        root: Data folder; null stands for the environment variable FEDSIM_DATA. The files are
            looked for in `root/name`, then in `root`.
        train, test: What the file names of the two parts start with (EMNIST, for instance, has
            `emnist-letters-train`).
        flat: Give inputs `[height*width]` instead of `[1, height, width]`.
        normalise: Scale to mean 0 and standard deviation 1 of the train images, not to [0, 1].
        train_limit, test_limit: Keep the first so many samples; null keeps all. Both sets above
            are stored in a random order.
    """

    name: str = "mnist"
    root: str | None = None
    train: str = "train"
    test: str = "t10k"
    flat: bool = False
    normalise: bool = False
    train_limit: Annotated[int, Range(ge=1)] | None = None
    test_limit: Annotated[int, Range(ge=1)] | None = None

    def load(self) -> Dataset:
        """Read the four files; see `DataPart.load`."""
        train_images, train_y = self._read(self.train, self.train_limit)
        test_images, test_y = self._read(self.test, self.test_limit)
        if train_images.shape[1:] != test_images.shape[1:]:
            raise DataError(
                f"data: the train images of '{self.name}' are {train_images.shape[1:]} pixels, "
                f"the test images {test_images.shape[1:]}; both must be of one size"
            )
        names = _CLASS_NAMES.get(self.name, ())
        highest = int(max(train_y.max(), test_y.max()))
        if names and highest >= len(names):
            raise DataError(f"data: '{self.name}' has labels 0..{len(names) - 1}, found {highest}")
        train_x, test_x = image_tensors(
            train_images, test_images, normalise=self.normalise, flat=self.flat
        )
        return Dataset(
            name=self.name,
            task="classification",
            train_x=train_x,
            train_y=torch.from_numpy(train_y),
            test_x=test_x,
            test_y=torch.from_numpy(test_y),
            num_outputs=len(names) or highest + 1,
            class_names=names,
        )

    def _read(self, part: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 `[N, H, W]` and labels int64 `[N]` of one part."""
        published = _PUBLISHED.get(self.name, f"'{self.name}' is your own data set (data.name)")
        images_path, labels_path = (
            # Some programs put a dot before "idx" when they unpack.
            find(
                self.root, self.name, [f"{part}-{a}-{b}-ubyte", f"{part}-{a}.{b}-ubyte"], published
            )
            for a, b in (("images", "idx3"), ("labels", "idx1"))
        )
        labels = _bytes_only(read_idx(labels_path, 1), labels_path)
        images = _bytes_only(read_idx(images_path, 3), images_path)
        if len(labels) != len(images) or images.size == 0:
            raise DataError(
                f"data: '{images_path}' holds {images.shape} images and '{labels_path}' "
                f"{len(labels)} labels; expected one label per image, and at least one image"
            )
        # The sum covers the whole file as published, header included.
        header = bytes((0, 0, 8, 1)) + len(labels).to_bytes(4, "big")
        md5 = hashlib.md5(header + labels.tobytes(), usedforsecurity=False).hexdigest()
        known = _LABELS_MD5.get(md5, self.name)
        if known != self.name and self.name in _PUBLISHED:
            raise DataError(
                f"data: '{labels_path}' is {known}, not {self.name}; keep the files of each in "
                f"a folder of its own name below data.root, or use data={known}"
            )
        return images[:limit], labels[:limit].astype(np.int64)


def read_idx(path: Path, num_dims: int) -> np.ndarray:
    """Read one IDX file (format: see above) strictly; every byte must be accounted for.

    Args:
        path: The file, plain or gzip.
        num_dims: How many dimensions it must have.

    Returns:
        The array, in the machine's byte order.

    Raises:
        DataError: The file cannot be read, has another type or number of dimensions, or holds fewer
            or more bytes than its header says.
    """
    with opened(path) as stream:
        start = bytes(read_at_most(stream, 4))
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES:
            raise DataError(
                f"data: '{path}' is not an IDX file: it starts with 0x{start.hex()}; expected "
                "0x0000, a type of 08, 09, 0b, 0c, 0d or 0e, and the number of dimensions"
            )
        if start[3] != num_dims:
            raise DataError(
                f"data: '{path}' is an IDX file of {start[3]} dimensions; expected {num_dims}"
            )
        sizes = bytes(read_at_most(stream, 4 * num_dims))
        if len(sizes) < 4 * num_dims:
            raise DataError(f"data: '{path}' ends inside its IDX header; fetch it again")
        shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
        dtype = np.dtype(_TYPES[start[2]])
        expected = math.prod(shape) * dtype.itemsize
        if expected > MAX_BYTES:
            raise DataError(
                f"data: the IDX header of '{path}' says {shape}, more than {MAX_BYTES >> 30} GiB; "
                "the file is damaged, or too large for one tensor"
            )
        data = read_at_most(stream, expected + 1)
    if len(data) != expected:
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise DataError(
            f"data: the IDX header of '{path}' says {shape}, {expected} bytes, and there are "
            f"{found}; the file is damaged, fetch it again"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _bytes_only(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype != np.uint8:
        raise DataError(f"data: '{path}' holds {array.dtype}; expected unsigned bytes (type 08)")
    return array
