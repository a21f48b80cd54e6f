"""The contract of a layer rule, and the tape that records what a rule needs for its gradient.

Shapes: K clients, B samples each, folded `[K*B, ...]`; stacked weights `[K, ...]`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedsim.records import Params


@dataclass
class Tape:
    """The stacked weights of the cohort, and the (layer, input, output edge) of one forward.

    Attributes:
        weights: name -> `[K, ...]`, updated in place by the engine.
        active: How many clients (the first rows) the current forward runs.
        records: What the last forward recorded, in order of execution. An output is kept as its
            place in the graph, not as a tensor: user code may write into the tensor afterwards
            (`nn.ReLU(inplace=True)`, `y += x`), which would make it another quantity.
    """

    weights: Params = field(default_factory=dict)
    active: int = 0
    records: list[tuple[StackedLayer, Tensor, GradientEdge]] = field(default_factory=list)


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
    def contract_(self, into: Params, a: Tensor, g: Tensor, alpha: float) -> None:
        """Add `alpha · Σ_b (weight gradient of sample b)` per client, in place.

        Args:
            into: name in the model -> `[K, ...]` (the weights themselves, or a buffer).
            a: The recorded input, folded.
            g: The gradient of the loss with respect to the output, folded. A sample's weight in
                the sum (mean over a ragged batch, a clipping factor) is already multiplied in.
            alpha: E.g. −lr to take a plain SGD step.
        """

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
        name = self.names.get(parameter)
        return None if name is None or name not in into else into[name][: self.tape.active]

    def unfold(self, t: Tensor) -> Tensor:
        """Return `[K*B, ...]` as `[K, B, ...]`."""
        return t.view(self.tape.active, -1, *t.shape[1:])
