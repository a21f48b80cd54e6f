"""Where data files are looked for, and how their bytes are read: plain or gzip, never unbounded."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fedsim.errors import DataError

MAX_BYTES = 8 * 2**30
"""The most that one file may unpack to; a few kilobytes of gzip could otherwise fill the memory."""

_CHUNK = 2**20


def find(root: str | None, folder: str, names: Sequence[str], published: str) -> Path:
    """Return the first file that exists of `names`, each also tried with `.gz` added.

    `root/folder` is searched before `root` itself, so that two data sets whose files share their
    names (MNIST, Fashion-MNIST) cannot be mistaken for one another.

    Args:
        root: The data folder; None stands for the environment variable FEDSIM_DATA.
        folder: The data set's own sub-folder.
        names: Names that the file is known by, relative to the folder, or absolute.
        published: Where the original can be had, for the message.

    Raises:
        DataError: No data folder is set, or none of the files exists in it.
    """
    base = _data_root(root, names, published)
    places = [base / folder, base]
    for place in places:
        for name in names:
            for candidate in (place / name, place / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
    wanted = " or ".join(f"'{name}'" for name in names)
    if all(Path(name).is_absolute() for name in names):
        raise DataError(f"data: there is no file {wanted} (nor with .gz added); {published}")
    looked = " and ".join(f"'{place}'" for place in places)
    raise DataError(
        f"data: file {wanted} (plain or .gz) is missing; looked in {looked}. "
        f"{published}. Put it there, or say where it is with data.root=FOLDER"
    )


def _data_root(root: str | None, names: Sequence[str], published: str) -> Path:
    if root is None and all(Path(name).is_absolute() for name in names):
        return Path("/")  # unused: an absolute name replaces whatever it is joined to
    chosen = root if root is not None else os.environ.get("FEDSIM_DATA", "")
    if not chosen:
        raise DataError(
            f"data: file '{names[0]}' is needed, and no data folder is set to look for it in. "
            f"{published}. Set the environment variable FEDSIM_DATA to the folder that holds it, "
            "or give data.root=FOLDER"
        )
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise DataError(f"data.root: {chosen!r} has no home folder; give a full path") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, through gzip where its first two bytes say so.

    The content decides, not the suffix: browsers unpack a `.gz` and keep its name.

    Raises:
        DataError: The file cannot be read, or its gzip data is damaged; also when that shows only
            inside the `with` block.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.open(raw, "rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: '{path}' cannot be read ({error}); fetch it again") from error


def read_at_most(stream: BinaryIO, limit: int) -> bytearray:
    """Read up to `limit` bytes, asking for memory only as the bytes arrive.

    `stream.read(limit)` would reserve `limit` bytes first, and a damaged header can ask for any.
    """
    data = bytearray()
    while len(data) < limit:
        chunk = stream.read(min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def read_text(path: Path) -> str:
    """Return the whole of a UTF-8 text file, a byte-order mark removed, line ends as they are.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or unpacks to more than `MAX_BYTES`.
    """
    with opened(path) as stream:
        data = read_at_most(stream, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"data: '{path}' unpacks to more than {MAX_BYTES >> 30} GiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: '{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
