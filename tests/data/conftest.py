"""Small files made by hand, and the folder of real ones where there is one."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest


def _idx(array, type_code=0x08):
    header = bytes((0, 0, type_code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx_bytes():
    """Function: a big-endian array as the bytes of an IDX file."""
    return _idx


@pytest.fixture
def tiny_idx(tmp_path):
    """Folder with a tiny MNIST-like set: three train and two test images of 2x2 pixels."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    train = np.array([[[0, 51], [102, 255]], [[0, 0], [0, 0]], [[255, 255], [255, 255]]], np.uint8)
    test = np.array([[[0, 255], [0, 255]], [[51, 51], [51, 51]]], np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(_idx(train))
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx(np.array([2, 0, 1], np.uint8)))
    (folder / "t10k-images-idx3-ubyte").write_bytes(_idx(test))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.array([1, 3], np.uint8)))
    return tmp_path


@pytest.fixture
def real_root():
    """The folder of published files, or a skip."""
    root = os.environ.get("FEDSIM_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("FEDSIM_DATA names no folder of published data files")
    return root
