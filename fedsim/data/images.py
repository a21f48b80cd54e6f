"""Images as tensors: bytes of any layout to float `[N, channels, height, width]`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**22


def image_tensors(
    train: np.ndarray, test: np.ndarray, *, normalise: bool, flat: bool
) -> tuple[Tensor, Tensor]:
    """Scale byte images to [0, 1] floats, or to mean 0 and standard deviation 1 per channel.

    Args:
        train: uint8 `[N, H, W]` or `[N, H, W, C]`.
        test: The same, of the test set.
        normalise: Subtract the train images' channel means, divide by their channel standard
            deviations (a constant channel is only centred).
        flat: Return `[N, C*H*W]` instead of `[N, C, H, W]`.

    Returns:
        Both as float32 tensors.
    """
    train_NHWC = train if train.ndim == 4 else train[..., None]
    test_NHWC = test if test.ndim == 4 else test[..., None]
    mean_C, std_C = _moments(train_NHWC) if normalise else (None, None)
    tensors = []
    for images_NHWC in (train_NHWC, test_NHWC):
        bytes_NCHW = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))
        x_NCHW = torch.from_numpy(bytes_NCHW).to(torch.float32).div_(255)
        if mean_C is not None and std_C is not None:
            x_NCHW.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])
        tensors.append(x_NCHW.flatten(1) if flat else x_NCHW)
    return tensors[0], tensors[1]


def _moments(images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the channels' means and standard deviations on the [0, 1] scale, each `[C]`.

    Counted in whole numbers, so the result does not depend on the number of threads.
    """
    means, stds = [], []
    for channel in range(images_NHWC.shape[3]):
        values = images_NHWC[..., channel].reshape(-1)
        count_256 = np.zeros(256, np.int64)
        for start in range(0, len(values), _BLOCK):  # bincount makes an int64 copy of its input
            count_256 += np.bincount(values[start : start + _BLOCK], minlength=256)
        level_256 = np.arange(256) / 255
        mean = float(count_256 @ level_256) / len(values)
        std = float(np.sqrt(count_256 @ (level_256 - mean) ** 2 / len(values)))
        means.append(mean)
        stds.append(std if std > 1e-9 else 1.0)
    return torch.tensor(means, dtype=torch.float32), torch.tensor(stds, dtype=torch.float32)
