"""The contract of a layer rule, and the tape that records what a rule needs for its gradient.

Shapes: K clients, B samples each, folded `[K*B, ...]`; stacked weights `[K, ...]`.
"""

from __future__ import annotations

import abc
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedsim.records import Params

Kept = dict[str, Tensor]
"""Parameter of a layer -> each sample's own gradient of it, folded `[K*B, ...]`."""

KEPT_BYTES = 128 << 20
"""Above this, a layer's per-sample gradients are not kept but summed up anew."""

BLOCK_BYTES = 4 << 20
"""About how much scratch memory a rule takes for the norms of one block of samples."""


@dataclass
class Tape:
    """The stacked weights of the cohort, and the (layer, input, output edge) of one forward.

    Attributes:
        weights: name -> `[K, ...]`, updated in place by the engine.
        active: How many clients (the first rows) the current forward runs.
        rows: How many samples those have together, K*B.
        records: What the last forward recorded, in order of execution. An output is kept as its
            place in the graph, not as a tensor: user code may write into the tensor afterwards
            (`nn.ReLU(inplace=True)`, `y += x`), which would make it another quantity. None where
            there is no graph (`fedsim.layers.chain`).
    """

    weights: Params = field(default_factory=dict)
    active: int = 0
    rows: int = 0
    records: list[tuple[StackedLayer, Tensor, GradientEdge | None]] = field(default_factory=list)


class StackedLayer(nn.Module, abc.ABC):
    """K clients' copies of one layer.

    Args:
        layer: The original; gives hyper-parameters.
        names: Parameter of the layer -> name in the model, e.g. `{"weight": "fc1.weight"}`.
        tape: Shared by all stacked layers of a model.
    """

    def __init__(self, layer: nn.Module, names: dict[str, str], tape: Tape) -> None:
        super().__init__()
        self.names = names
        self.trained = tuple(n for n, p in layer.named_parameters(recurse=False) if p.requires_grad)
        self.tape = tape
        self.configure(layer)

    @abc.abstractmethod
    def configure(self, layer: nn.Module) -> None:
        """Read hyper-parameters off the original layer.

        Raises:
            NotImplementedError: The layer uses an option that the rule does not cover.
        """

    @abc.abstractmethod
    def run(self, a: Tensor) -> Tensor:
        """Return the outputs for folded inputs `a [K*B, ...]`."""

    @abc.abstractmethod
    def instantiate(self, parameter: str, a: Tensor, g: Tensor) -> Tensor:
        """Return each sample's own gradient of one parameter, `[N, ...]`.

        Args:
            parameter: Of the layer, e.g. `"weight"`.
            a: Recorded inputs of any N samples.
            g: The gradient of each sample's loss with respect to its output.
        """

    def square_norm(self, parameter: str, a: Tensor, g: Tensor, kept: Kept) -> Tensor:
        """Return the squared L2 norm of each sample's gradient of one parameter, `[N]`.

        A rule overrides this where the norm is cheaper than the gradient. Per-sample gradients that
        were made on the way may be put into `kept`.
        """
        size = self.tape.weights[self.names[parameter]][0].nbytes
        if may_keep(len(g) * size):
            kept[parameter] = self.instantiate(parameter, a, g)
            return square_sum(kept[parameter])
        blocks = row_blocks(len(g), size)
        return torch.cat([square_sum(self.instantiate(parameter, a[s], g[s])) for s in blocks])

    def add_(self, parameter: str, target: Tensor, a: Tensor, g: Tensor, alpha: float) -> None:
        """Add `alpha · Σ_b (gradient of sample b)` to one parameter's rows `[K, ...]`, in place."""
        grads = self.unfold(self.instantiate(parameter, a, g))
        target.add_(grads.sum(1), alpha=alpha)

    def square_norms(
        self, a: Tensor, g: Tensor, kept: Kept, without: Container[str] = ()
    ) -> dict[str, Tensor]:
        """Return the squared L2 norms of each sample's gradient, name in the model -> `[K, B]`.

        Args:
            a: The recorded input, folded.
            g: The gradient of each sample's own loss with respect to its output, folded.
            kept: Per-sample gradients that `contract_` can use again are put here.
            without: Names to leave out. So are frozen parameters.
        """
        return {
            name: self.unfold(self.square_norm(parameter, a, g, kept))
            for parameter in self.trained
            if (name := self.names[parameter]) not in without
        }

    def contract_(
        self,
        into: Params,
        a: Tensor,
        g: Tensor,
        alpha: float,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Add `alpha · Σ_b w_b · (weight gradient of sample b)` per client, in place.

        Args:
            into: name in the model -> `[K, ...]` (the weights themselves, or a buffer). What is not
                in it is not wanted; frozen parameters never are.
            a: The recorded input, folded.
            g: The gradient of the loss with respect to the output, folded.
            alpha: E.g. −lr to take a plain SGD step.
            weights: The factor w of each sample, `[K, B]`, or name in the model -> `[K, B]`; None:
                1, or a factor that is multiplied into `g` already.
            kept: What `square_norms` kept of the same `a` and `g`.
        """
        last: Tensor | None = None
        for parameter in self.trained:
            if (target := self.rows(into, parameter)) is None:
                continue
            if weights is None:
                self.add_(parameter, target, a, g, alpha)
                continue
            w = weights if isinstance(weights, Tensor) else weights[self.names[parameter]]
            w_KB = w.to(g.dtype)
            if kept is not None and parameter in kept:
                grads_KBP = kept[parameter].view(*w_KB.shape, -1)
                target.view(len(target), 1, -1).baddbmm_(w_KB.unsqueeze(1), grads_KBP, alpha=alpha)
                continue
            if w is not last:
                last, scaled = w, g * w_KB.reshape(-1, *(1 for _ in g.shape[1:]))
            self.add_(parameter, target, a, scaled, alpha)

    def forward(self, a: Tensor) -> Tensor:
        y = self.run(a)
        if not torch.is_grad_enabled():
            return y
        if not y.requires_grad:  # the first layer: autograd starts here, not at the weights
            y.requires_grad_()
        # The same values as neither a leaf (which could not be written into) nor a view of another
        # tensor (writing into one would take this edge out of the graph); what torch itself does
        # inside `matmul`.
        out: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
        self.tape.records.append((self, a.detach(), get_gradient_edge(out)))
        return out

    def weight(self, parameter: str) -> Tensor | None:
        """Return the active clients' rows of one parameter, `[K, ...]`, or None if absent."""
        name = self.names.get(parameter)
        return None if name is None else self.tape.weights[name][: self.tape.active]

    def rows(self, into: Params, parameter: str) -> Tensor | None:
        """Return the active clients' rows of a target of `contract_`, or None if not wanted."""
        name = self.names[parameter]
        return into[name][: self.tape.active] if name in into else None

    def unfold(self, t: Tensor) -> Tensor:
        """Return `[K*B, ...]` as `[K, B, ...]`."""
        return t.view(self.tape.active, -1, *t.shape[1:])


def may_keep(nbytes: int) -> bool:
    """Return whether per-sample gradients of this size may be kept."""
    return nbytes <= KEPT_BYTES


def square_sum(t: Tensor) -> Tensor:
    """Return the sum of squares of each row, `[N, ...]` -> `[N]`.

    Not `t.norm(2, -1)`: over a million numbers in float32, its error is 500 times as large.
    """
    blocks = row_blocks(len(t), t[0].nbytes)
    return torch.cat([t[some].square().flatten(1).sum(1) for some in blocks])


def row_blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of about `BLOCK_BYTES` at `row_bytes` a row."""
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def gram_square_norm(left: Tensor, right: Tensor) -> Tensor:
    """Return `‖leftᵀ right‖²` per sample without making the product, `[N, T, *]` twice -> `[N]`.

    ‖Σ_t l_t r_tᵀ‖² = Σ_{t,s} ⟨l_t, l_s⟩ ⟨r_t, r_s⟩: two T x T matrices. Rounding can make what is
    zero slightly negative. In float64: where the terms cancel, as of two large and nearly equal
    rows of `left`, products in float32 lose the norm, and what is clipped by it is not (1.6 C).
    """
    blocks = []
    for some in row_blocks(len(left), 2 * left.shape[1] ** 2 * 8):
        x, y = left[some].double(), right[some].double()
        gram = torch.bmm(x, x.transpose(1, 2)).mul_(torch.bmm(y, y.transpose(1, 2)))
        blocks.append(gram.sum((1, 2)))
    return torch.cat(blocks).clamp_min_(0).to(left.dtype)
