"""The proximal term: local steps held near the model that the client received."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.client.half import ClientContext, ClientHalf, Shift


@dataclass(frozen=True)
class Proximal(ClientHalf):
    """A client half whose loss has (μ/2) ‖w − x‖² added to it.

        g ← ∇F_k(w) + μ (w − x)

    Attributes:
        mu: μ ≥ 0.
    """

    mu: float

    def shift(self, context: ClientContext) -> Shift:
        return Shift(pull=self.mu)
