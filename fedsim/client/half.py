"""The client half of an algorithm: pure functions on tensors, in four levels of override.

Smallest first; take the first that says what the algorithm does:

1. `criterion(outputs, batch, context)`: one client, one batch: a scalar of the model's outputs.
   Enough for margins, bag losses, reconstruction; runs on the layer rules.
2. `loss(params, batch, context)`: the same with the parameters at hand, for losses that need more
   than one forward pass (MOON). Runs through `torch.func` in the cohort engine.
3. `correct(grads, params, context)`: what the algorithm adds to a gradient (FedProx, SCAFFOLD).
4. `upload(params, context)`: what goes back to the server besides the model.

The engine owns the loop, the batches and the optimiser step. A client half never loops over
clients and never knows which engine runs it: the cohort engine calls the same functions under
`torch.func.vmap`, so they must be plain tensor algebra without data-dependent Python branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsim.client.objective import sample_losses
from fedsim.data.dataset import Task
from fedsim.records import Params


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One mini-batch of one client: inputs `x [B, ...]` and targets `y [B, ...]`."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, kw_only=True)
class ClientContext:
    """What a client half may know during its local work.

    Attributes:
        task: The data set's task.
        model: `model(params, x) -> outputs`, a pure function.
        start: The model as the client received it.
        arrays: The client's own `client-arrays`, as the strategy sent them.
        server_round: 1, 2, ...
        lr: This round's learning rate.
        steps: How many local steps this client takes this round: an int, or a 0-d tensor of the
            model's precision under the cohort engine.
    """

    task: Task
    model: Callable[[Params, Tensor], Tensor]
    start: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor]
    server_round: int
    lr: float
    steps: int | Tensor


class ClientHalf:
    """The default client half: the task's mean loss, plain gradients, nothing else sent back."""

    def criterion(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        """Return the batch's loss, a scalar, from the model's outputs `[B, ...]`."""
        return sample_losses(context.task, outputs, batch.y).mean()

    def loss(self, params: Params, batch: Batch, context: ClientContext) -> Tensor:
        """Return the batch's loss, a scalar; by default, the criterion of one forward pass."""
        return self.criterion(context.model(params, batch.x), batch, context)

    def correct(self, grads: Params, params: Params, context: ClientContext) -> Params:
        """Return the gradients that the step shall use; by default, as they are."""
        return grads

    def upload(self, params: Params, context: ClientContext) -> Params:
        """Return further tensors for the server after the last step; by default, none."""
        return {}

    def overrides(self, level: str) -> bool:
        """Whether this half replaces `criterion`, `loss`, `correct` or `upload`."""
        return getattr(type(self), level) is not getattr(ClientHalf, level)
