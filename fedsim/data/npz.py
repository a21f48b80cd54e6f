"""NumPy's npy and npz files, read strictly: no pickle, and no memory that the file does not fill.

`np.load` reserves whatever the header asks for before it reads, and raises a dozen kinds of errors
on a damaged file. Here the header is checked first, and every failure is a `DataError`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from fedsim.data.files import MAX_BYTES, opened, read_at_most
from fedsim.errors import DataError, did_you_mean


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named arrays of an npz file; the others are not even unpacked.

    Raises:
        DataError: The file is not a readable npz file, lacks a key, or holds an array of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            known = [name.removesuffix(".npy") for name in archive.namelist()]
            for key in keys:
                if key not in known:
                    raise DataError(
                        f"data: '{path}' has no array '{key}'; it has {', '.join(known)}"
                        f"{did_you_mean(key, known)}"
                    )
            arrays = {}
            for key in keys:
                name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
                with archive.open(name) as stream:
                    arrays[key] = _read_array(cast(BinaryIO, stream), f"array '{key}' of '{path}'")
    except DataError:
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise DataError(f"data: '{path}' is not a readable npz file ({error!r})") from error
    return arrays


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an npy file, plain or gzip.

    Raises:
        DataError: The file is not a readable npy file, or holds an array of objects.
    """
    with opened(path) as stream:
        return _read_array(stream, f"'{path}'")


def _read_array(stream: BinaryIO, what: str) -> np.ndarray:
    """Read one npy file; `what` names it in messages.

    The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version} of the format; expected (1, 0) or (2, 0)")
    except Exception as error:  # the header is parsed as Python text: nearly anything
        raise DataError(f"data: {what} is not a readable npy array ({error!r})") from error
    if dtype.kind not in "biufU" or dtype.itemsize == 0:
        raise DataError(
            f"data: {what} holds elements of type {dtype}; expected numbers or text "
            "(objects are never loaded: they could run code)"
        )
    expected = math.prod(shape) * dtype.itemsize
    if any(not 0 <= size < 2**62 for size in shape) or expected > MAX_BYTES:
        raise DataError(f"data: {what} claims shape {shape}, more than {MAX_BYTES >> 30} GiB")
    data = read_at_most(stream, expected + 1)
    if len(data) != expected:
        found = f"only {len(data)}" if len(data) < expected else "more"
        raise DataError(
            f"data: {what} claims shape {shape} of {dtype}, {expected} bytes, and there are "
            f"{found}; the file is damaged, save or fetch it again"
        )
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "U" and array.size and not _is_text(array):
        raise DataError(f"data: {what} holds text with impossible characters; it is damaged")
    return array


def _is_text(array: np.ndarray) -> bool:
    codes = np.frombuffer(array.tobytes(), np.uint32)
    return bool(((codes < 0xD800) | ((codes > 0xDFFF) & (codes <= 0x10FFFF))).all())
