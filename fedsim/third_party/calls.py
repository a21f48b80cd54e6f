"""Third-party strategies in our round loop: a keyed draw for their sampling, and clear failures.

Flower's own strategies sample with the global `random` module, wait for ever for a minimum number
of nodes, and meet replies that they cannot do with by an exception of any kind.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.admission import AdmittedReplies
from fedsim.engines.base import IndexedGrid
from fedsim.errors import FedsimError, TooFewClientsError


class StrategyError(FedsimError):
    """A strategy could not make the next model out of good replies."""


@contextmanager
def participants(
    strategy: Strategy,
    kind: str,
    grid: Grid,
    clients: np.ndarray,
    key: np.random.SeedSequence,
    timeout_s: float,
) -> Iterator[bool]:
    """Let a strategy see, and sample among, this round's participants alone.

    Yields:
        Whether there is anybody to sample among.

    Args:
        strategy: Any but ours.
        kind: What they are asked for: `"train"` or `"evaluate"`.
        grid: One of our engines; or any other, whose nodes are all participants.
        clients: The participants' indices.
        key: Of the draw.
        timeout_s: How long to wait for real clients.

    Raises:
        TooFewClientsError: There are fewer than the strategy's minimum, for which it would wait.
    """
    minimum = _minimum(strategy, kind)
    if not isinstance(grid, IndexedGrid):
        _wait(strategy, kind, grid, minimum, timeout_s)
        yield True
        return
    if 0 < len(clients) < minimum:
        raise _too_few(strategy, kind, f"there are {len(clients)} in this round", minimum)
    before = random.getstate()
    random.seed(int(key.generate_state(1, np.uint64)[0]))
    grid.set_available(clients)
    try:
        yield len(clients) > 0
    finally:
        grid.set_available(None)
        random.setstate(before)


def show_model(
    strategy: Strategy,
    server_round: int,
    arrays: ArrayRecord,
    grid: Grid,
    key: np.random.SeedSequence,
) -> None:
    """Let a strategy see the model of a round in which nobody takes part.

    Some remember in `configure_train` what they step from; what they would ask is not sent.
    """
    anybody = np.arange(max(1, _minimum(strategy, "train")))
    with participants(strategy, "train", grid, anybody, key, timeout_s=0.0):
        list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))


@contextmanager
def failures(strategy: Strategy, server_round: int, replies: AdmittedReplies) -> Iterator[None]:
    """Turn whatever a strategy fails with into one clear error.

    Its replies are good, so it is the strategy that cannot do with them.

    Raises:
        StrategyError: It failed.
    """
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        raise StrategyError(
            f"{type(strategy).__name__} failed in round {server_round} on "
            f"{len(replies.admitted)} good replies of {replies.asked} asked: "
            f"{type(error).__name__}: {error}\n"
            "give it more clients (participation) or settings that suit their number (strategy)"
        ) from error


def _minimum(strategy: Strategy, kind: str) -> int:
    """Return how many nodes one of Flower's strategies waits for before it samples."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner  # a wrapper, such as those for differential privacy
    if not getattr(strategy, f"fraction_{kind}", 1.0):
        return 0  # it asks nobody
    minima = ("min_available_nodes", f"min_{kind}_nodes")
    return max(int(getattr(strategy, name, 0)) for name in minima)


def _wait(strategy: Strategy, kind: str, grid: Grid, minimum: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (count := len(list(grid.get_node_ids()))) < minimum:
        if time.monotonic() > deadline:
            there = f"{count} have connected within {timeout_s:g} s"
            raise _too_few(strategy, kind, there, minimum)
        time.sleep(min(1.0, timeout_s / 10))


def _too_few(strategy: Strategy, kind: str, there: str, minimum: int) -> TooFewClientsError:
    return TooFewClientsError(
        f"{type(strategy).__name__} needs {minimum} clients to {kind}, but {there}; "
        f"lower strategy.min_{kind}_nodes and strategy.min_available_nodes, or have more clients "
        "take part (participation)"
    )
