"""Runs a search without engines: the strategy, its client half, and nothing in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from flwr.app import Message

from fedsim.data.items import dataset_of
from fedsim.query import QueryHalf
from fedsim.records import Chunk, Params, Replies
from fedsim.strategy import Round
from strategies.heavy_hitters.fedpem import FedPEM
from strategies.heavy_hitters.gtf import GTF
from strategies.heavy_hitters.histogram import Histogram
from strategies.heavy_hitters.pem import PEM
from strategies.heavy_hitters.search import Search
from strategies.heavy_hitters.tap import TAP
from strategies.heavy_hitters.taps import TAPS


class Cohort:
    """What a half needs of `fedsim.client.whole.Cohort`."""

    def __init__(self, items, clients, start, server_round, seed):
        self._items, self.clients, self.start = items, clients, start
        self.server_round, self.seed = server_round, seed
        self.counts = np.array([len(items[k]) for k in clients])

    def __len__(self) -> int:
        return len(self.clients)

    def inputs(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self._items[self.clients[row]])


class OneChunk(Replies):
    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk

    def __iter__(self) -> Iterator[Message]:
        raise NotImplementedError

    def chunks(self) -> Iterator[Chunk]:
        yield self.chunk


def search(
    strategy: Search,
    items: Sequence[np.ndarray],
    bits: int,
    seed: int = 0,
    half: QueryHalf | None = None,
) -> tuple[Params, list[Params]]:
    """Return the release, and what the clients have sent in each round."""
    sizes = np.array([len(own) for own in items])
    party = np.repeat(np.arange(len(items)), sizes)
    data = dataset_of("made_up", np.concatenate(items), party, bits)
    release, everyone, sent = strategy.begin(data, sizes), np.flatnonzero(sizes), []
    half = half or strategy.client_half
    for server_round in range(1, strategy.rounds() + 1):
        asked = strategy.asks(server_round, everyone)
        context = Round(
            server_round=server_round, num_clients=len(items), asked=asked, params=release
        )
        question = strategy.question(context)
        like = strategy.upload_like(context)
        cohort = Cohort(items, asked, question, server_round, seed)
        answer = half.run(cohort).upload
        assert {n: (t.dtype, t.shape) for n, t in like.items()} == {
            n: (t.dtype, t.shape[1:]) for n, t in answer.items()
        }
        examples = {"num-examples": cohort.counts.astype(np.float64)}
        chunk = Chunk(client_index=asked, arrays={}, client_arrays=answer, metrics=examples)
        release = strategy.aggregate(context, OneChunk(chunk))
        sent.append(answer)
    return release, sent


def methods(*, k: int, levels: int, shared: int) -> dict[str, Search]:
    """Every method whose users report once."""
    values = {"k": k, "levels": levels}
    return {
        "pem": PEM(**values),
        "gtf": GTF(**values),
        "fedpem": FedPEM(**values),
        "tap": TAP(**values, shared_levels=shared),
        "tap, adaptive": TAP(**values, shared_levels=shared, slack=1.0, local_widening=2.0),
        "taps": TAPS(**values, shared_levels=shared),
        "histogram": Histogram(k=k),
    }


METHODS = tuple(methods(k=1, levels=2, shared=1))
