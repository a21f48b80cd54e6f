"""Devices as a file lists them.

CSV, one row per device:

    client,flops,down,up,memory
    0,2.1e9,2.5e6,1.0e6,4e9
    1,3.0e8,4.0e5,1.5e5,5e8

`flops` are the operations per second that training reaches, `down` and `up` the bytes per second of
the link from the server and to it, `memory` the bytes that local work may take. Columns stand in
any order; `client` and `memory` may be left out. Without `memory`, all work fits.

With `client`, a row is that client's device, and clients without a row draw one of the rows.
Without it, row n is client n's if there are enough rows; if there are fewer rows than clients, each
client draws one. Draws are independent, with replacement, by the scenario's seed.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from fedsim import seeds
from fedsim.devices.base import DevicesPart, Fleet
from fedsim.errors import ConfigError, DataError
from fedsim.text_file import header_and_rows, opened

log = logging.getLogger(__name__)

CLIENT, MEMORY = "client", "memory"
_NEEDED = ("flops", "down", "up")
_COLUMNS = (CLIENT, *_NEEDED, MEMORY)
_MAX_VALUE = 1e30
"""A larger value means a damaged file."""


@dataclass(frozen=True, kw_only=True)
class Listed(DevicesPart):
    """Speeds, links and memory of a file.

    Attributes:
        path: A CSV file, relative to the working directory; `~` is expanded.
    """

    path: str = ""

    def fleet(self, num_clients: int, seed: int) -> Fleet:
        """See `DevicesPart.fleet`.

        Raises:
            ConfigError: No path is given, or there is no such file.
            DataError: The file is damaged or names a client that the population does not have.
        """
        if not self.path:
            raise ConfigError(
                "path: no file of devices is named; give a CSV file with the header "
                "flops,down,up, e.g. devices.path=devices.csv"
            )
        rows = read_devices(Path(os.path.expanduser(self.path)), num_clients)
        row_N = _rows_of_clients(rows.get(CLIENT), len(rows["flops"]), num_clients, seed)
        memory = rows.get(MEMORY)
        return Fleet(
            flops_N=rows["flops"][row_N],
            down_N=rows["down"][row_N],
            up_N=rows["up"][row_N],
            memory_N=None if memory is None else memory[row_N],
        )


def _rows_of_clients(
    client_R: np.ndarray | None, count: int, num_clients: int, seed: int
) -> np.ndarray:
    """Return each client's row, `[N]`; says how many are drawn, or left out."""
    drawn_N = seeds.rng(seed, 0, seeds.SERVER, "device-row").integers(count, size=num_clients)
    if client_R is not None:
        row_N = drawn_N.copy()
        row_N[client_R] = np.arange(count)
        others = num_clients - count
    elif count >= num_clients:
        row_N, others = np.arange(num_clients), 0
        if count > num_clients:
            log.info("devices: %d rows for %d clients; the first are used", count, num_clients)
    else:
        row_N, others = drawn_N, num_clients
    if others:
        log.warning(
            "devices: %d rows for %d clients; %d clients draw one of them, with replacement",
            *(count, num_clients, others),
        )
    return row_N


def read_devices(path: Path, num_clients: int) -> dict[str, np.ndarray]:
    """Read a file of devices: column -> its values `[R]`, int64 clients, else float64.

    Raises:
        ConfigError: There is no such file.
        DataError: The file is damaged, or names a client outside 0..num_clients-1 or one twice.
    """
    with opened(path, "a CSV file") as file:
        columns = _columns(path, file, num_clients)
    if not columns["flops"]:
        raise DataError(f"path: '{path}' holds no devices")
    types = {CLIENT: np.int64}
    return {name: np.array(v, types.get(name, np.float64)) for name, v in columns.items()}


def _columns(path: Path, file: TextIO, num_clients: int) -> dict[str, list[float]]:
    header, rows = header_and_rows(path, file)
    good = len(set(header)) == len(header) and set(_NEEDED) <= set(header) <= set(_COLUMNS)
    if not good:
        raise DataError(
            f"path: '{path}', line 1: the header is {','.join(header)[:200]!r}; expected the "
            f"columns {','.join(_NEEDED)}, and if wanted {CLIENT} and {MEMORY}, in any order"
        )
    columns: dict[str, list[float]] = {name: [] for name in header}
    seen: set[float] = set()
    for where, row in rows:
        for name, cell in zip(header, row, strict=True):
            columns[name].append(_value(f"{where}, column '{name}'", name, cell, num_clients))
        if CLIENT in columns:
            client = columns[CLIENT][-1]
            if client in seen:
                raise DataError(f"{where}, column '{CLIENT}': client {client} has a row already")
            seen.add(client)
    return columns


def _value(where: str, name: str, cell: str, num_clients: int) -> float:
    text = cell.strip()
    try:
        value = math.nan if "_" in text else float(text) if name != CLIENT else int(text)
    except ValueError:
        value = math.nan
    if name == CLIENT:
        if not 0 <= value < num_clients:
            raise DataError(f"{where}: {text[:40]!r} is no client; allowed: 0..{num_clients - 1}")
    elif not 0 < value <= _MAX_VALUE:
        raise DataError(f"{where}: {text[:40]!r} is not allowed; expected a number above 0")
    return value
