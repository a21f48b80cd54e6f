"""Plain SGD of K clients whose weights are kept as factors; see `fedsim.layers.factors`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.plan import Plan
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import CohortStep
from fedsim.layers.factors import FactoredWeights, worth_factors
from fedsim.layers.linear import StackedLinear
from fedsim.layers.model import StackedModel
from fedsim.records import LateRows, Params

PLAIN = ("loss", "shift", "correct", "upload", "begin", "frozen", "gradient", "run")
"""Levels of a client half that must be the default's: what they do, they do to weights."""

Memory = Callable[[str, tuple[int, ...], Tensor], Tensor]
"""(name, shape, like) -> memory of that shape, the same in each round."""


def takes_plain_steps(runtime: ClientRuntime) -> bool:
    """Whether clients' weights are moved by nothing but the gradients of their outputs' loss."""
    half, work = runtime.half, runtime.work
    replaced = any(half.overrides(level) for level in PLAIN) or half.full_gradient
    other = work.momentum or work.weight_decay or runtime.drops or runtime.frozen
    return not (replaced or other or runtime.protection.seals or not runtime.estimator.plain)


def factored_layers(stacked: StackedModel, plan: Plan) -> list[StackedLinear]:
    """Return the layers of a chain that are worth factors; none unless the first is among them."""
    if stacked.chain is None or not len(plan.steps) or not plan.steps.min():
        return []
    samples = plan.rows.shape[0] * plan.rows.shape[2]
    linear = [layer for layer in stacked.chain.layers if isinstance(layer, StackedLinear)]
    names = [layer.names["weight"] for layer in linear]
    if len(set(names)) < len(names):  # shared
        return []
    worth = [m for m in linear if worth_factors(m.out_features, m.in_features, samples)]
    return worth if worth and worth[0] is linear[0] else []


class FactoredStep(CohortStep):
    """Steps of a chain whose first layer, and others perhaps, are kept as factors.

    Args:
        stacked: The model.
        plan: All batches of the round, whose samples are gathered at once.
        layers: Those that are kept as factors.
        memory: Gives memory.

    Attributes:
        inputs: The samples of all steps, `[K, S, B, ...]`.
    """

    def __init__(
        self,
        stacked: StackedModel,
        runtime: ClientRuntime,
        *,
        plan: Plan,
        layers: list[StackedLinear],
        memory: Memory,
        **state: object,
    ) -> None:
        super().__init__(runtime, **state)  # type: ignore[arg-type]
        self._layers = stacked.chain.layers if stacked.chain else []
        self._room = plan.rows.shape[2]
        self.inputs = _gather(plan, memory)
        self._factors: dict[str, FactoredWeights] = {}
        count, samples = len(plan.clients), plan.rows.shape[0] * self._room
        x_KNI = self.inputs.flatten(1, 2).flatten(2)
        for number, layer in enumerate(layers):
            name = layer.names["weight"]
            start = self.start[name]
            u = memory(f" u {name}", (count, samples, layer.out_features), start)
            v = x_KNI
            if number:
                v = memory(f" v {name}", (count, samples, layer.in_features), start)
            self._factors[name] = FactoredWeights(start, u, v, known=not number)

    @torch.no_grad()
    def run(
        self, x: Tensor, y: Tensor, lengths: np.ndarray, dropout: list[torch.Generator]
    ) -> Tensor:
        active = len(lengths)
        a, fresh = x.flatten(2), False
        inputs, outputs = [], []
        for layer in self._layers:
            inputs.append(a)
            if isinstance(layer, StackedLinear):
                a = self._forward(layer, a)
            elif isinstance(layer, nn.ReLU):
                a = torch.relu_(a) if fresh else torch.relu(a)  # nobody else needs the layer's own
            elif isinstance(layer, nn.Tanh):
                a = torch.tanh(a)
            fresh = isinstance(layer, StackedLinear)
            outputs.append(a)
        with torch.enable_grad():
            loss_A, grad = self.output_gradient(a.flatten(0, 1), x, y, lengths)
        g = grad.view(active, -1, grad.shape[-1])
        for number in reversed(range(len(self._layers))):
            layer = self._layers[number]
            if isinstance(layer, StackedLinear):
                first = not any(isinstance(m, StackedLinear) for m in self._layers[:number])
                g = self._step_back(layer, inputs[number], g, first=first)
                if first:
                    break
            elif isinstance(layer, nn.ReLU):
                g = torch.ops.aten.threshold_backward(g, outputs[number], 0)
            elif isinstance(layer, nn.Tanh):
                g = torch.ops.aten.tanh_backward(g, outputs[number])
        return loss_A

    def add_gradient(
        self, into: Params, x: Tensor, y: Tensor, lengths: np.ndarray, share_A: Tensor
    ) -> None:
        raise NotImplementedError("halves that ask for the full gradient take other steps")

    def result(self) -> Params:
        return LateRows(list(self.start), self.weights, self._factors)

    def _forward(self, layer: StackedLinear, a: Tensor) -> Tensor:
        active, bias = len(a), layer.names.get("bias")
        bias_AO = None if bias is None else self.weights[bias][:active]
        name = layer.names["weight"]
        if name in self._factors:
            return self._factors[name].apply(a, bias_AO)
        weight_AIO = self.weights[name][:active].transpose(1, 2)
        if bias_AO is None:
            return torch.bmm(a, weight_AIO)
        return torch.baddbmm(bias_AO.unsqueeze(1), a, weight_AIO)

    def _step_back(self, layer: StackedLinear, a: Tensor, g: Tensor, *, first: bool) -> Tensor:
        """Take a layer's step; return the gradient of its inputs, which nobody needs if `first`."""
        active, bias, name = len(a), layer.names.get("bias"), layer.names["weight"]
        if name in self._factors:
            back = g if first else self._factors[name].back(g)
            self._factors[name].add_(a, g, -self.lr, self._room)
        else:
            weight_AOI = self.weights[name][:active]
            back = g if first else torch.bmm(g, weight_AOI)
            weight_AOI.baddbmm_(g.transpose(1, 2), a, alpha=-self.lr)
        if bias is not None:
            self.weights[bias][:active].add_(g.sum(1), alpha=-self.lr)
        return back


def _gather(plan: Plan, memory: Memory) -> Tensor:
    """Return the samples of all steps by client, `[K, S, B, ...]`."""
    rows_SKB = plan.rows
    if not plan.lengths.all():  # who has finished is filled up with samples of its own
        rows_SKB = np.where(plan.lengths[:, :, None] > 0, rows_SKB, rows_SKB[:1, :, :1])
    rows_KSB = np.ascontiguousarray(rows_SKB.transpose(1, 0, 2))
    index = torch.from_numpy(rows_KSB.reshape(-1)).to(plan.x.device)
    out = memory(" batches", (len(index), *plan.x.shape[1:]), plan.x)
    x: Tensor = torch.index_select(plan.x, 0, index, out=out)
    return x.view(*rows_KSB.shape, *x.shape[1:])
