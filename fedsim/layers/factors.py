"""K clients' weights of one linear layer as what they are made of: a shared start and few factors.

Plain SGD moves a linear layer by products of what it was given and what came back,

    W_k = W + U_kᵀ V_k        U [n, O], V [n, I]: a row for each sample that the client has visited

and as long as those are fewer numbers than W itself (n (O + I) <= O I), nothing needs W_k:

    outputs      a W_kᵀ  =  a Wᵀ + (a V_kᵀ) U_k
    back         g W_k   =  g W  + (g U_kᵀ) V_k
    the mean     Σ_k w_k (W_k − W)  =  (w ⊙ U)ᵀ V        one product over all samples of all clients

So K weight matrices, which a step would read twice and write once, never pass through the memory;
all large products are with the one W, or sum over all clients at once. Who does need W_k (a median,
a control variate, an attack) gets it by asking; see `fedsim.records.LateRows`.

Shapes: A active clients (the first rows of K), B samples of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def worth_factors(outputs: int, inputs: int, samples: int) -> bool:
    """Whether the factors of so many samples are no larger than the matrix."""
    return samples * (outputs + inputs) <= outputs * inputs


class FactoredWeights:
    """The weight matrices of K clients, from one start.

    Args:
        start: W `[O, I]`, where all begin; not written to.
        u, v: Memory for the factors of S steps of at most B samples, `[K, S*B, O]` and
            `[K, S*B, I]`.
        known: Whether v holds all inputs already, as of a layer that sees the data; they are then
            multiplied by W at once.
    """

    def __init__(self, start: Tensor, u: Tensor, v: Tensor, *, known: bool) -> None:
        self.start, self.u, self.v = start, u.zero_(), v
        self._known = (v.flatten(0, 1) @ start.T).view(*v.shape[:2], -1) if known else None
        if not known:
            v.zero_()
        self._filled = 0

    def apply(self, a: Tensor, bias_AO: Tensor | None) -> Tensor:
        """Return `[A, B, O]` from inputs `[A, B, I]`; known ones are those of the next rows."""
        active, width = a.shape[:2]
        if self._known is None:
            y = (a.flatten(0, 1) @ self.start.T).view(active, width, -1)
        else:
            y = self._known[:active, self._filled : self._filled + width]
        if bias_AO is not None:
            y = y + bias_AO.unsqueeze(1)
        if self._filled:
            past = slice(self._filled)
            gram = torch.bmm(a, self.v[:active, past].transpose(1, 2))
            y = torch.baddbmm(y, gram, self.u[:active, past])
        return y

    def back(self, g: Tensor) -> Tensor:
        """Return the gradient of the inputs `[A, B, I]` from that of the outputs `[A, B, O]`."""
        active, width = g.shape[:2]
        d = (g.flatten(0, 1) @ self.start).view(active, width, -1)
        if self._filled:
            past = slice(self._filled)
            gram = torch.bmm(g, self.u[:active, past].transpose(1, 2))
            d.baddbmm_(gram, self.v[:active, past])
        return d

    def add_(self, a: Tensor, g: Tensor, alpha: float, room: int) -> None:
        """Add `alpha · g_kᵀ a_k` to each active client's matrix; takes `room` >= B rows."""
        active, width = a.shape[:2]
        rows = slice(self._filled, self._filled + width)
        torch.mul(g, alpha, out=self.u[:active, rows])
        if self._known is None:
            self.v[:active, rows].copy_(a)
        self._filled += room

    def rows(self) -> Tensor:
        """Return all matrices, `[K, O, I]`, in new memory."""
        start = self.start.expand(len(self.u), *self.start.shape)
        return torch.baddbmm(start, self.u.transpose(1, 2), self.v)

    def weighted_update(self, weights_K: Tensor) -> Tensor:
        """Return Σ_k w_k (W_k − W), `[O, I]`."""
        weighted = self.u * weights_K.view(-1, 1, 1)
        return weighted.flatten(0, 1).T @ self.v.flatten(0, 1)

    def surely_finite(self) -> Tensor:
        """Return whether each client's matrix is finite beyond doubt, bool `[K]`.

        No entry is larger than the largest of W and Σ ‖u‖ ‖v‖ over the samples.
        """
        u, v = (torch.linalg.vector_norm(t, dim=2).double() for t in (self.u, self.v))
        bound_K = (u * v).sum(1) + self.start.abs().max().double()
        finite_K: Tensor = bound_K < torch.finfo(self.start.dtype).max / 4
        return finite_K
