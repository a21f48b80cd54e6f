"""Which samples each client of a chunk visits in each of its local steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim.client.runtime import ClientRuntime, Pool
from fedsim.client.work import as_table


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of K clients, S steps of at most B samples.

    Clients are sorted by their number of steps, most first, so that in every step those still
    working are the first rows and finished ones cost nothing.

    Attributes:
        order: Position of each row's client in what was asked for, `[K]`.
        clients: Client indices, `[K]`.
        x, y: The pool of samples, `[M, ...]`.
        rows: Pool rows of each batch, padded with the batch's first row (an empty one with any),
            `[S, K, B]`.
        lengths: True batch lengths, `[S, K]`; 0 where the client has finished, or where a Poisson
            batch is empty.
        steps: How many steps each client takes, `[K]`.
        num_examples: Training samples of each client, `[K]`.
    """

    order: np.ndarray
    clients: np.ndarray
    x: Tensor
    y: Tensor
    rows: np.ndarray
    lengths: np.ndarray
    steps: np.ndarray
    num_examples: np.ndarray

    def extents(self) -> list[tuple[int, int]]:
        """Return, for each step, how many clients still work, and the longest batch of theirs."""
        active_S = (self.steps > np.arange(len(self.lengths))[:, None]).sum(1)
        width_S = np.maximum(self.lengths.max(1, initial=0), 1)
        return list(zip(active_S.tolist(), width_S.tolist(), strict=True))


def make_plan(
    runtime: ClientRuntime,
    clients: np.ndarray,
    server_round: int,
    *,
    sweep: bool = False,
    pool: Pool | None = None,
) -> Plan:
    """Draw the batches of `clients`: the same draws as one client at a time.

    With `sweep`, every sample of each client once, in order. `pool` is theirs, if it is there.
    """
    pool = runtime.pool(clients.tolist()) if pool is None else pool
    sizes = [len(rows) for rows in pool.rows]
    if sweep:
        tables = [as_table(runtime.work.sweep(n)) for n in sizes]
    else:
        tables = list(runtime.tables(server_round, clients, sizes))
    steps_K = np.array([len(lengths) for _, lengths in tables], np.int64)
    order = np.argsort(-steps_K, kind="stable")
    steps = int(steps_K.max(initial=0))
    width = max([1, *(positions.shape[1] for positions, _ in tables if len(positions))])
    shapes = {positions.shape for positions, _ in tables}
    if len(shapes) == 1 and len(set(sizes)) == 1 and sizes[0]:  # all alike, in one go
        own_KSB = np.stack(
            [own[positions] for own, (positions, _) in zip(pool.rows, tables, strict=True)]
        )
        rows_SKB = np.ascontiguousarray(own_KSB.transpose(1, 0, 2))
        lengths_SK = np.stack([lengths for _, lengths in tables], 1)
    else:
        rows_SKB, lengths_SK = _ragged(tables, pool.rows, order, steps, width)
    return Plan(
        order=order,
        clients=clients[order],
        x=pool.x,
        y=pool.y,
        rows=rows_SKB,
        lengths=lengths_SK,
        steps=steps_K[order],
        num_examples=np.array(sizes, np.int64)[order],
    )


def _ragged(
    tables: list[tuple[np.ndarray, np.ndarray]],
    rows: list[np.ndarray],
    order: np.ndarray,
    steps: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (pool rows `[S, K, B]`, lengths `[S, K]`) of clients in order, as `Plan` has them."""
    rows_SKB = np.zeros((steps, len(order), width), np.int64)
    lengths_SK = np.zeros((steps, len(order)), np.int64)
    for column, k in enumerate(order.tolist()):
        (positions_SB, lengths_S), own = tables[k], rows[k]
        if not len(own):  # its batches are empty
            continue
        own_SB, count = own[positions_SB], len(positions_SB)
        rows_SKB[:count, column, : own_SB.shape[1]] = own_SB
        if own_SB.shape[1] < width:
            rows_SKB[:count, column, own_SB.shape[1] :] = own_SB[:, :1]
        lengths_SK[:count, column] = lengths_S
    return rows_SKB, lengths_SK
