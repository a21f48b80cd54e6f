"""A round's replies kept for a second look: in memory up to a size, past it in a temporary file.

An engine computes replies once and reuses their memory. A rule that must see all of them together
(a Gram matrix, a median) puts each chunk in here as it is drawn, and then reads tensor by tensor,
in blocks of columns:

    peak memory = `memory_bytes` + one chunk + one block of `block_bytes`, however many replies

The file is read in pieces, not mapped: what is read counts against nobody's memory but the block's.
It lies where the system puts temporary files (TMPDIR) and goes away with the spool.

Shapes: `_MB` all replies by the columns of one block, `_KD` a chunk's replies by a tensor's values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import torch
from torch import Tensor

from fedsim.errors import FedsimError


class SpoolError(FedsimError):
    """The temporary file could not take a round's replies."""


@dataclass(frozen=True)
class _Segment:
    """One tensor of one chunk, `rows_KD`, or where in the file its rows start."""

    count: int
    rows_KD: Tensor | None
    start: int


class Spool:
    """Rows of a round's replies, tensor by tensor; a context manager.

    Args:
        like: The model: names, shapes and dtypes.
        memory_bytes: How much is held in memory before the file is used.
        block_bytes: How large a block may be, as float64.

    Example:
        >>> with Spool({"w": torch.zeros(3)}) as spool:
        ...     spool.add({"w": torch.ones(2, 3)})
        ...     [rows.sum().item() for _, rows in spool.blocks("w")]
        [6.0]
    """

    def __init__(
        self, like: Mapping[str, Tensor], memory_bytes: int = 2**28, block_bytes: int = 2**24
    ) -> None:
        self.like = like
        self.block_bytes = block_bytes
        self.count = 0
        self._left = memory_bytes
        self._segments: dict[str, list[_Segment]] = {name: [] for name in like}
        self._file: IO[bytes] | None = None
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the rows of one chunk, `arrays[name]` is `[K, ...]`."""
        counts = set()
        for name, like in self.like.items():
            rows_KD = arrays[name].detach().reshape(len(arrays[name]), like.numel())
            counts.add(len(rows_KD))
            if rows_KD.nbytes <= self._left:
                self._left -= rows_KD.nbytes
                segment = _Segment(len(rows_KD), rows_KD.clone(), 0)
            else:
                segment = _Segment(len(rows_KD), None, self._append(rows_KD))
            self._segments[name].append(segment)
        self.count += max(counts, default=0)

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield (columns, rows_MB) over one tensor, as float64.

        The rows are the caller's, to be written to as well, until the next block.
        """
        like = self.like[name]
        width = max(1, min(like.numel(), self.block_bytes // (8 * max(self.count, 1))))
        block = torch.empty((self.count, width), dtype=torch.float64, device=like.device)
        for start in range(0, like.numel(), width):
            columns = slice(start, min(start + width, like.numel()))
            rows_MB, row = block[:, : columns.stop - start], 0
            for segment in self._segments[name]:
                into = rows_MB[row : row + segment.count]
                if segment.rows_KD is not None:
                    into.copy_(segment.rows_KD[:, columns])
                else:
                    self._read(segment, like, columns, into)
                row += segment.count
            yield columns, rows_MB

    def _append(self, rows_KD: Tensor) -> int:
        start = self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fedsim-spool-")
            self._file.seek(start)
            for row_D in rows_KD:  # one by one: a GPU's rows pass through the CPU's memory
                self._file.write(memoryview(row_D.contiguous().cpu().numpy()).cast("B"))
        except OSError as error:
            raise SpoolError(
                f"a temporary file in {tempfile.gettempdir()} cannot take this round's replies "
                f"({error.strerror}); set TMPDIR to a folder with more room, ask fewer clients a "
                "round, or let the strategy hold more of them in memory"
            ) from error
        self._end += rows_KD.nbytes
        return start

    def _read(self, segment: _Segment, like: Tensor, columns: slice, into_KB: Tensor) -> None:
        if self._file is None:
            raise RuntimeError("the spool is closed")
        width, item = columns.stop - columns.start, like.element_size()
        for row in range(segment.count):
            self._file.seek(segment.start + (row * like.numel() + columns.start) * item)
            data = bytearray(self._file.read(width * item))
            if len(data) != width * item:
                raise SpoolError("a temporary file of this round's replies was cut short")
            into_KB[row].copy_(torch.frombuffer(data, dtype=like.dtype))
