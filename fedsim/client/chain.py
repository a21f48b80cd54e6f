"""Plain SGD of K clients on a chain of layers: by hand, and on factors where they are smaller.

Nothing but the arithmetic is left of a step: no graph, no tape, each layer's update right after its
gradient. Wide layers of clients with few samples are kept as `fedsim.layers.factors`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.client.plan import Plan
from fedsim.client.runtime import ClientRuntime
from fedsim.client.steps import CohortStep, StepFactory
from fedsim.layers.factors import FactoredWeights, worth_factors
from fedsim.layers.linear import StackedLinear
from fedsim.layers.model import StackedModel
from fedsim.records import LateRows, Params

PLAIN = ("loss", "shift", "correct", "upload", "begin", "frozen", "gradient", "run")
"""Levels of a client half that must be the default's: what they do, they do to weights."""

Memory = Callable[[str, tuple[int, ...], Tensor], Tensor]
"""(name, shape, like) -> memory of that shape, the same in each round."""


GATHERED_BYTES = 2**26
"""How much of a chunk's samples may be gathered at once, and not step by step."""


def takes_plain_steps(runtime: ClientRuntime) -> bool:
    """Whether clients' weights are moved by nothing but the gradients of their outputs' loss."""
    half, work = runtime.half, runtime.work
    replaced = any(half.overrides(level) for level in PLAIN) or half.full_gradient
    other = work.momentum or work.weight_decay or runtime.drops or runtime.frozen
    return not (replaced or other or runtime.protection.seals or not runtime.estimator.plain)


def chain_step(
    stacked: StackedModel, plan: Plan, params: Params, memory: Memory
) -> tuple[StepFactory, Params] | None:
    """Return what makes a chunk's steps, and those of `params` of which each client has a copy.

    None where the model is no chain.
    """
    linear = linear_layers(stacked)
    names = [layer.names["weight"] for layer in linear]
    if not linear or len(set(names)) < len(names):  # a shared layer is needed after its update
        return None
    layers: list[StackedLinear] = []
    if plan.rows.size * plan.x[0].nbytes <= GATHERED_BYTES and plan.steps.min(initial=1):
        layers = factored_layers(linear, plan.rows.shape[0] * plan.rows.shape[2])
    kept = {layer.names["weight"] for layer in layers}
    make = partial(ChainStep, stacked, plan=plan, layers=layers, memory=memory)
    return make, {name: t for name, t in params.items() if name not in kept}


def linear_layers(stacked: StackedModel) -> list[StackedLinear]:
    """Return the linear layers of a chain, in their order; none of another model."""
    layers = stacked.chain.layers if stacked.chain else []
    return [layer for layer in layers if isinstance(layer, StackedLinear)]


def factored_layers(linear: list[StackedLinear], samples: int) -> list[StackedLinear]:
    """Return which of a chain's layers are worth factors; none unless the first is among them."""
    worth = [m for m in linear if worth_factors(m.out_features, m.in_features, samples)]
    return worth if worth and worth[0] is linear[0] else []


def saved_bytes(stacked: StackedModel, runtime: ClientRuntime) -> int:
    """Return how much smaller a client of average size is by its factors, in bytes."""
    if not takes_plain_steps(runtime) or not (linear := linear_layers(stacked)):
        return 0
    average = len(runtime.dataset.train_x) // runtime.partition.num_clients
    steps, batch = runtime.work.num_steps(average), min(runtime.work.batch_size, average)
    samples, each = steps * batch, runtime.dataset.train_x.element_size()
    return each * sum(
        m.in_features * m.out_features - samples * (m.in_features + m.out_features)
        for m in factored_layers(linear, samples)
    )


class ChainStep(CohortStep):
    """Plain steps of a chain.

    Args:
        stacked: The model.
        plan: All batches of the round.
        layers: Those that are kept as factors: none, or the first and others perhaps.
        memory: Gives memory.

    Attributes:
        inputs: The samples of all steps, `[K, S, B, ...]`, which factors need at once; None where
            each step's are gathered when it comes, and stay in the cache.
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
        self._first = linear_layers(stacked)[0]
        self._room = plan.rows.shape[2]
        self.inputs = _gather(plan, memory) if layers else None
        self._factors: dict[str, FactoredWeights] = {}
        if self.inputs is None:
            return
        count, samples = len(plan.clients), plan.rows.shape[0] * self._room
        x_KNI = self.inputs.flatten(1, 2).flatten(2)
        for layer in layers:
            name, known = layer.names["weight"], layer is self._first
            start = self.start[name]
            u = memory(f" u {name}", (count, samples, layer.out_features), start)
            v = x_KNI
            if not known:
                v = memory(f" v {name}", (count, samples, layer.in_features), start)
            self._factors[name] = FactoredWeights(start, u, v, known=known)

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
        pairs = zip(self._layers, inputs, outputs, strict=True)
        for layer, a, z in reversed(list(pairs)):
            if isinstance(layer, StackedLinear):
                g = self._step_back(layer, a, g)
                if layer is self._first:
                    break
            elif isinstance(layer, nn.ReLU):
                g = torch.ops.aten.threshold_backward(g, z, 0)
            elif isinstance(layer, nn.Tanh):
                g = torch.ops.aten.tanh_backward(g, z)
        return loss_A

    def add_gradient(
        self, into: Params, x: Tensor, y: Tensor, lengths: np.ndarray, share_A: Tensor
    ) -> None:
        raise NotImplementedError("halves that ask for the full gradient take other steps")

    def result(self) -> Params:
        if not self._factors:
            return self.weights
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

    def _step_back(self, layer: StackedLinear, a: Tensor, g: Tensor) -> Tensor:
        """Take a layer's step; return the gradient of its inputs, unless it is the first."""
        active, bias, name = len(a), layer.names.get("bias"), layer.names["weight"]
        back = g
        if name in self._factors:
            if layer is not self._first:
                back = self._factors[name].back(g)
            self._factors[name].add_(a, g, -self.lr, self._room)
        else:
            weight_AOI = self.weights[name][:active]
            if layer is not self._first:
                back = torch.bmm(g, weight_AOI)
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
