"""What Flower's strategies expect of their clients, and what they make of the replies."""

from __future__ import annotations

from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)

from fedsim.client.half import ClientHalf
from fedsim.client.proximal import Proximal


def half_for(strategy: Strategy) -> ClientHalf:
    """Return the client half that one of Flower's strategies, or a wrapper of it, relies on.

    Its `FedProx` sends μ and leaves the term to its clients. The example in Flower's own docstring
    adds norms that are not squared, which is not the paper's term.
    """
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return Proximal(strategy.proximal_mu) if isinstance(strategy, FedProx) else ClientHalf()


def of_mean_only(strategy: Strategy) -> bool:
    """Whether one of Flower's strategies depends on the weighted mean of the replies alone."""
    return type(strategy) in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedProx)
