"""One aggregation of hand-made updates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.strategy import FedsimStrategy, Round
from tests.strategies._toy import Stacked, chunk


def aggregate(
    strategy: FedsimStrategy, updates: Tensor, *, start: float = 0.0, examples: object = 1.0
) -> Tensor:
    """Return the strategy's own update of a model at `start` out of `updates [K, ...]`."""
    x = torch.full(updates.shape[1:], start, dtype=updates.dtype)
    clients = np.arange(len(updates))
    context = Round(
        server_round=1, num_clients=len(clients), asked=clients, params={"x": x.clone()}
    )
    half = len(clients) // 2  # in two chunks, the later clients first
    parts = [
        chunk(
            clients[part],
            x + updates[part],
            np.broadcast_to(np.asarray(examples, float), len(clients))[part],
        )
        for part in (slice(half, None), slice(0, half))
        if len(clients[part])
    ]
    result = strategy.aggregate(context, Stacked(*parts))["x"]
    assert result.dtype == updates.dtype
    return result - x


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]
