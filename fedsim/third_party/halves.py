"""What Flower's strategies expect of their clients, beyond plain local SGD."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.serverapp.strategy import FedProx, Strategy

from fedsim.client.half import ClientContext, ClientHalf
from fedsim.records import Params


@dataclass(frozen=True)
class Proximal(ClientHalf):
    """The client half of Flower's `FedProx`, which sends μ and leaves the term to its clients.

        g ← ∇F_k(w) + μ (w − x)

    Li et al., MLSys 2020, arXiv:1812.06127, Algorithm 2; x is the model as received. The
    example in Flower's own docstring adds norms that are not squared, which is not the paper's.

    Attributes:
        mu: μ ≥ 0.
    """

    mu: float

    def correct(self, grads: Params, params: Params, context: ClientContext) -> Params:
        return {
            name: grad + self.mu * (params[name] - context.start[name])
            for name, grad in grads.items()
        }


def half_for(strategy: Strategy) -> ClientHalf:
    """Return the client half that one of Flower's strategies, or a wrapper of it, relies on."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return Proximal(strategy.proximal_mu) if isinstance(strategy, FedProx) else ClientHalf()
