"""Which samples each client of a chunk visits in each of its local steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim.client.runtime import ClientRuntime, Pool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of K clients, S steps of at most B samples.

    Clients are sorted by their number of steps, most first, so that in every step those still
    working are the first rows and finished ones cost nothing.

    Attributes:
        order: Position of each row's client in what was asked for, `[K]`.
        clients: Client indices, `[K]`.
        x, y: The pool of samples, `[M, ...]`.
        rows: Pool rows of each batch, padded with the batch's first row, `[S, K, B]`.
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
    batches = [
        runtime.work.sweep(len(rows))
        if sweep
        else runtime.batches(server_round, int(client), len(rows))
        for client, rows in zip(clients, pool.rows, strict=True)
    ]
    order = np.argsort([-len(b) for b in batches], kind="stable")
    steps = max((len(b) for b in batches), default=0)
    width = max(1, max((len(p) for b in batches for p in b), default=1))
    rows_SKB = np.zeros((steps, len(clients), width), np.int64)
    lengths_SK = np.zeros((steps, len(clients)), np.int64)
    for column, k in enumerate(order):
        own = pool.rows[k]
        for step, positions in enumerate(batches[k]):
            rows_SKB[step, column, : len(positions)] = own[positions]
            if len(positions):  # an empty batch is padded with whatever comes first in the pool
                rows_SKB[step, column, len(positions) :] = own[positions[0]]
            lengths_SK[step, column] = len(positions)
    return Plan(
        order=order,
        clients=clients[order],
        x=pool.x,
        y=pool.y,
        rows=rows_SKB,
        lengths=lengths_SK,
        steps=np.array([len(batches[k]) for k in order], np.int64),
        num_examples=np.array([len(pool.rows[k]) for k in order], np.int64),
    )
