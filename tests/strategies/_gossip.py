"""Nodes on a graph whose local work is a function, driven through the real strategies."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import torch

from fedsim.records import NUM_EXAMPLES, Chunk, Params
from fedsim.strategy import Federation, Round
from strategies.gossiping import Gossiping
from tests.strategies._toy import Stacked, everyone

Work = Callable[[np.ndarray, Params], tuple[Params, Params]]
"""(clients, what they were sent) -> (their models, what they upload besides)."""


def on(strategy: Gossiping, graph: nx.Graph) -> Gossiping:
    count = len(graph)
    strategy.federation = Federation(
        num_clients=count, seed=0, schedule=everyone(count), graph=lambda: graph
    )
    return strategy


def play(strategy: Gossiping, work: Work, x: torch.Tensor, who: np.ndarray, server_round: int = 1):
    """Play one round of a strategy whose model is one vector; return the run's next model."""
    count = strategy.federation.num_clients
    context = Round(server_round=server_round, num_clients=count, asked=who, params={"x": x})
    sent = strategy.client_payload(context)(who)
    models, upload = work(who, sent)
    ones = {NUM_EXAMPLES: np.ones(len(who))}
    half = len(who) // 2
    chunks = [
        Chunk(
            client_index=who[part],
            arrays={name: rows[part] for name, rows in models.items()},
            client_arrays={name: rows[part] for name, rows in upload.items()},
            metrics={name: column[part] for name, column in ones.items()},
        )
        for part in (slice(half), slice(half, None))
    ]
    return strategy.aggregate(context, Stacked(*[c for c in chunks if len(c)]))["x"]


def idle(who: np.ndarray, sent: Params) -> tuple[Params, Params]:
    """Send back what came."""
    return {"x": sent["x"]}, {}
