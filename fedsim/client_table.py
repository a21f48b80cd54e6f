"""Tables of per-client state: one row of named tensors for each client of the population.

For algorithms that remember a model-sized quantity of every client (control variates, last
updates, personal models). Rows are kept by client index in the model's precision, on the CPU. A
client that was never written costs nothing: memory is taken when a row is first written, and past
a size the rows lie in a sparse temporary file, of which the system keeps in memory what is in use.

Shapes: N clients of the population, K of a call; `[K, ...]` one row per client.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import FedsimError, ResumeError
from fedsim.records import Params, is_finite
from fedsim.strategy import State

DENSE_BYTES = 2**30
"""Tables larger than this lie in a file."""

LARGE_ROW = 2**16
"""Rows of this many bytes are written one by one."""

_WORD, _ALIGN = 8, 16

log = logging.getLogger(__name__)


class TableSpaceError(FedsimError):
    """There is no room for a table's file."""


@dataclass(frozen=True)
class _Column:
    """Where one tensor lies within a row: words `start` to `stop`, of which it fills the first."""

    shape: torch.Size
    dtype: torch.dtype
    start: int
    stop: int

    def of(self, rows_KW: Tensor) -> Tensor:
        """Return the tensor's view `[K, ...]` into rows of words."""
        flat = rows_KW[:, self.start : self.stop].view(self.dtype)
        return flat[:, : self.shape.numel()].view(len(rows_KW), *self.shape)


class ClientTable:
    """One row of tensors per client.

    `fit` says what a row looks like and how many clients there are, before the first use and again
    whenever clients may have joined.

    Args:
        total: Whether to keep the sum of all rows, in float64. It is brought up to date at each
            `put` with what that changes, and is a part of the state: a resumed run sums alike.
        limit_bytes: Tables that are larger than this, with every client written, lie in a
            temporary file (in `TMPDIR`); by default, `DENSE_BYTES`.

    Example:
        >>> table = ClientTable()
        >>> table.fit({"w": torch.zeros(2)}, num_clients=3)
        >>> table.put(np.array([1]), {"w": torch.tensor([[5.0, 6.0]])})
        >>> table.rows(np.array([0, 1]))["w"].tolist()
        [[0.0, 0.0], [5.0, 6.0]]
        >>> table.seen.tolist()
        [False, True, False]
    """

    _columns: dict[str, _Column]
    _words: int
    _device: torch.device
    _seen_N: np.ndarray
    _total: Params
    _file: IO[bytes] | None
    _rows_CW: Tensor
    _views: Params

    def __init__(self, *, total: bool = False, limit_bytes: int | None = None) -> None:
        self.keeps_total = total
        self._limit = limit_bytes
        self._clear()

    def fit(self, like: Mapping[str, Tensor], num_clients: int) -> None:
        """Make room for `num_clients` rows of tensors like these; what is there stays.

        Args:
            like: Names, shapes and dtypes of a row, and the device that rows are returned on.
            num_clients: N; may grow from call to call.

        Raises:
            ResumeError: The table holds rows of another kind, or more clients than there are.
        """
        if not self._columns:
            self._lay_out(like)
        kept = {name: (column.shape, column.dtype) for name, column in self._columns.items()}
        asked = {name: (tensor.shape, tensor.dtype) for name, tensor in like.items()}
        if kept != asked:
            odd = [n for n in {**kept, **asked} if kept.get(n) != asked.get(n)]
            raise ResumeError(
                f"the state kept per client is of another model (it differs in '{odd[0]}'); "
                "was the model or the precision changed?"
            )
        self._device = next(iter(like.values())).device
        if num_clients < len(self._seen_N) and self._seen_N[num_clients:].any():
            raise ResumeError(
                f"there is state of client {int(np.flatnonzero(self._seen_N)[-1])}, but there are "
                f"{num_clients} clients; was the partition changed?"
            )
        self._grow(num_clients)

    @property
    def seen(self) -> np.ndarray:
        """Which clients have a row of their own, bool `[N]`."""
        return self._seen_N.copy()

    @property
    def total(self) -> Params:
        """The sum of all rows that were written, float64; unwritten ones count as zero."""
        if not self.keeps_total:
            raise ValueError("make the table with total=True to have the sum of its rows")
        return {n: t.clone().to(self._device) for n, t in self._total.items()}

    def rows(self, clients: np.ndarray, default: Mapping[str, Tensor] | None = None) -> Params:
        """Return copies of some clients' rows, name -> `[K, ...]`.

        Args:
            clients: Client indices in [0, N), `[K]`.
            default: What a client that was never written has; zeros if not given.
        """
        known_K = torch.from_numpy(self._seen_N[clients])
        rows_KW = self._read(torch.from_numpy(np.asarray(clients, np.int64)), known_K)
        rows = {name: column.of(rows_KW) for name, column in self._columns.items()}
        if default is not None and not bool(known_K.all()):
            for name, tensor in rows.items():
                tensor[~known_K] = default[name].to("cpu", tensor.dtype)
        return {name: tensor.to(self._device) for name, tensor in rows.items()}

    def put(self, clients: np.ndarray, rows: Mapping[str, Tensor]) -> None:
        """Replace some clients' rows by `rows[name]`, `[K, ...]`; each client at most once.

        A row that is not finite is not kept: what is made of a client's finite claims may overflow,
        and would stay.

        Raises:
            TableSpaceError: The disk is full.
        """
        clients = np.asarray(clients, np.int64)
        if not len(clients):
            return
        own = {name: rows[name].to("cpu", c.dtype) for name, c in self._columns.items()}
        finite_K = _finite(own)
        for k in np.flatnonzero(~finite_K):
            log.warning("what client %d's reply makes is not finite; its row stays", clients[k])
        if self._words * _WORD >= LARGE_ROW:
            for k in np.flatnonzero(finite_K):
                self._put_one(int(clients[k]), {name: t[k] for name, t in own.items()})
            return
        if not finite_K.all():
            keep = torch.from_numpy(finite_K)
            clients, own = clients[finite_K], {name: t[keep] for name, t in own.items()}
        index_K = torch.from_numpy(clients)
        if self.keeps_total:
            known_K = torch.from_numpy(self._seen_N[clients])
            old_KW = self._read(index_K[known_K], known_K[known_K])
            for name, column in self._columns.items():
                # In float64, and not as a difference in the rows' precision: whatever is rounded
                # off here would stay in the total for ever.
                self._total[name].add_(own[name].double().sum(0))
                self._total[name].sub_(column.of(old_KW).double().sum(0))
        self._write(index_K, self._packed(own, len(clients)))
        self._seen_N[clients] = True

    def _put_one(self, client: int, row: Params) -> None:
        """Do as `put` for one large row: few passes over it, and no memory but the table's."""
        if self.keeps_total:
            for name, new in row.items():
                self._total[name].add_(new)
                if self._seen_N[client]:
                    self._total[name].sub_(self._views[name][client])
        if self._file is None:
            for name, new in row.items():
                self._views[name][client].copy_(new)
        else:
            one = {name: new[None] for name, new in row.items()}
            self._write(torch.tensor([client]), self._packed(one, 1))
        self._seen_N[client] = True

    def _packed(self, rows: Params, count: int) -> Tensor:
        """Return rows as words, `[K, W]`."""
        packed_KW = torch.zeros(count, self._words, dtype=torch.int64)
        for name, column in self._columns.items():
            column.of(packed_KW).copy_(rows[name])
        return packed_KW

    def state_dict(self, prefix: str) -> State:
        """Return the rows that were written, and the total, under names that start with `prefix`.

        A checkpoint costs what they do.
        """
        clients = np.flatnonzero(self._seen_N)
        rows_KW = self._read(torch.from_numpy(clients), torch.ones(len(clients), dtype=torch.bool))
        state: State = {f"{prefix}clients": clients}
        for name, column in self._columns.items():
            state[f"{prefix}rows/{name}"] = column.of(rows_KW).clone()
        for name, tensor in self._total.items():
            state[f"{prefix}total/{name}"] = tensor.clone()
        return state

    def load_state_dict(self, state: Mapping[str, object], prefix: str) -> None:
        """Replace everything by what `state_dict` returned.

        Raises:
            ResumeError: The state has no such table.
        """
        rows, total = (
            {
                key.removeprefix(start): torch.as_tensor(value)
                for key, value in state.items()
                if key.startswith(start)
            }
            for start in (f"{prefix}rows/", f"{prefix}total/")
        )
        clients = np.asarray(state.get(f"{prefix}clients", np.zeros((1, 1))))
        if not self._fits(clients, rows, total):
            raise ResumeError(
                f"the checkpoint has no state per client under '{prefix}' that belongs to this "
                f"strategy; it has {sorted(state)[:8]}; was the strategy changed?"
            )
        self._clear()
        if rows:
            like = {name: tensor.new_empty(tensor.shape[1:]) for name, tensor in rows.items()}
            self.fit(like, int(clients.max(initial=-1)) + 1)
            self.put(clients, rows)
            self._total = {name: tensor.clone() for name, tensor in total.items()}

    def _fits(self, clients: np.ndarray, rows: Params, total: Params) -> bool:
        """Whether these can be the arrays of such a table."""
        if clients.ndim != 1 or clients.dtype.kind != "i" or (clients < 0).any():
            return False
        if any(tensor.shape[:1] != (len(clients),) for tensor in rows.values()):
            return False
        if len(clients) and not rows:
            return False
        like = {name: tensor.shape[1:] for name, tensor in rows.items()} if self.keeps_total else {}
        return like == {name: tensor.shape for name, tensor in total.items()} and all(
            tensor.dtype == torch.float64 for tensor in total.values()
        )

    # --- rows of words -----------------------------------------------------------------------

    def _clear(self) -> None:
        self._columns, self._words = {}, 0
        self._device = torch.device("cpu")
        self._seen_N = np.zeros(0, bool)
        self._total = {}
        self._file = None
        self._rows_CW = torch.zeros(0, 0, dtype=torch.int64)  # C >= N rows of words
        self._views = {}

    def _lay_out(self, like: Mapping[str, Tensor]) -> None:
        """Give each tensor its place in a row; a row is contiguous, so that it costs few pages."""
        start = 0
        for name, tensor in like.items():
            words = math.ceil(tensor.numel() * tensor.itemsize / _ALIGN) * (_ALIGN // _WORD)
            self._columns[name] = _Column(tensor.shape, tensor.dtype, start, start + words)
            start += words
            if self.keeps_total:
                self._total[name] = torch.zeros(tensor.shape, dtype=torch.float64)
        self._words = start

    def _grow(self, num_clients: int) -> None:
        written = torch.from_numpy(np.flatnonzero(self._seen_N))
        seen_N = np.zeros(num_clients, bool)
        seen_N[written.numpy()] = True
        self._seen_N = seen_N
        if num_clients <= len(self._rows_CW):
            return
        # Room for twice as many, since nodes join one by one; what is not written costs nothing.
        count = max(num_clients, 2 * len(self._rows_CW))
        old_CW = self._rows_CW
        limit = DENSE_BYTES if self._limit is None else self._limit
        in_file = self._file is not None
        if not in_file and count * self._words * _WORD <= limit:
            # NumPy's zeros are the system's: no page of them exists before it is written.
            self._rows_CW = torch.from_numpy(np.zeros((count, self._words), np.int64))
        else:
            self._map(count)
        self._views = {name: column.of(self._rows_CW) for name, column in self._columns.items()}
        if not in_file and len(written):
            self._write(written, old_CW[written])

    def _map(self, count: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fedsim-table-")  # has no name any more
        self._file.truncate(count * self._words * _WORD)  # a hole: takes no room
        mapped = np.memmap(self._file, np.int64, "r+", shape=(count, self._words))
        self._rows_CW = torch.from_numpy(mapped)

    def _read(self, index_K: Tensor, known_K: Tensor) -> Tensor:
        """Return copies of rows; those that were never written are zeros, and are not looked at."""
        if bool(known_K.all()):
            return self._rows_CW.index_select(0, index_K)
        rows_KW = torch.zeros(len(index_K), self._words, dtype=torch.int64)
        rows_KW[known_K] = self._rows_CW.index_select(0, index_K[known_K])
        return rows_KW

    def _write(self, index_K: Tensor, rows_KW: Tensor) -> None:
        if self._file is None:
            self._rows_CW.numpy()[index_K.numpy()] = rows_KW.numpy()  # 4x torch's own speed
            return
        # Not through the mapping: on a full disk, that would end the process without a word.
        try:
            for client, row_W in zip(index_K.tolist(), rows_KW.numpy(), strict=True):
                self._file.seek(client * self._words * _WORD)
                self._file.write(row_W.data)
            self._file.flush()
        except OSError as error:
            size = self._rows_CW.nbytes / 2**30
            raise TableSpaceError(
                f"no room for a client's state in {tempfile.gettempdir()} ({error.strerror}); with "
                f"every client written it takes {size:.1f} GiB; set TMPDIR to a folder with room"
            ) from error


def _finite(rows: Params) -> np.ndarray:
    """Return which rows are finite, bool `[K]`."""
    finite_K = np.ones(len(next(iter(rows.values()))), bool)
    for tensor in rows.values():
        if tensor.is_floating_point():
            # One pass, as in `is_finite`; only rows whose sum is not finite are looked at again.
            sums_K = tensor.reshape(len(tensor), -1).sum(1)
            for row in np.flatnonzero(~torch.isfinite(sums_K).numpy()):
                finite_K[row] &= is_finite(tensor[row])
    return finite_K
