"""The client half of an algorithm: pure functions on tensors, in a few levels of override.

Smallest first; take the first that says what the algorithm does:

1. `criterion(outputs, batch, context)`: one client, one batch: a scalar of the model's outputs.
   Enough for margins, bag losses, reconstruction; runs on the layer rules.
2. `loss(params, batch, context)`: the same with the parameters at hand, for losses that need more
   than one forward pass (MOON). Runs through `torch.func` in the cohort engine.
3. `correct(grads, params, context)`: what the algorithm adds to a gradient (FedProx, SCAFFOLD).
4. `upload(params, context)`: what goes back to the server besides the model.

Algorithms whose clients have models of their own need more:

5. `begin(params, context)`: the model that the local work starts from, and that the client scores:
   what the server sent, with the client's own head or normalisation layers put in (FedPer).
6. `frozen(context)`: the parameters that the step leaves alone (FedRep's head, then body).
7. `gradient(params, batch, context)`: in place of the gradient of one batch, with further ones,
   and new values of the client's own arrays (Ditto, pFedMe, Per-FedAvg). Exact gradients only:
   refused under a private estimator. Runs through `torch.func` in the cohort engine.
8. `evaluated(params, batch, context)`: the model that the client scores, where that is not `begin`:
   one that it keeps (Ditto), or one adapted to its own samples first (Per-FedAvg).

The engine owns the loop, the batches and the optimiser step. A client half never loops over
clients and never knows which engine runs it: the cohort engine calls the same functions under
`torch.func.vmap`, so they must be plain tensor algebra without data-dependent Python branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsim.client.differentiate import Grad, gradient
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
        arrays: The client's own `client-arrays`, as the strategy sent them; after the first step,
            those that `gradient` returned last.
        server_round: 1, 2, ...
        lr: This round's learning rate.
        steps: How many local steps this client takes this round: an int, or a 0-d tensor of the
            model's precision under the cohort engine; 0 in an evaluation.
        step: Which of them it is: 0, 1, ...; after the last, or in an evaluation, of no meaning.
        trainable: The model's tensors that are trained; the others are buffers, or frozen for good.
        grad: `grad(function, params) -> (gradients, value)` of a scalar function of `params`, by
            whatever means the engine differentiates; may be nested.
    """

    task: Task
    model: Callable[[Params, Tensor], Tensor]
    start: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor]
    server_round: int
    lr: float
    steps: int | Tensor
    step: int = 0
    trainable: tuple[str, ...] = ()
    grad: Grad = gradient


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

    def begin(self, params: Params, context: ClientContext) -> Params:
        """Return the model to start from, of the names of `params`; by default, `params`."""
        return params

    def frozen(self, context: ClientContext) -> Mapping[str, bool | Tensor]:
        """Return which parameters stay as they are in this step; by default, none.

        Neither gradient, momentum nor weight decay moves those whose value is true.
        """
        return {}

    def gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor, Params]:
        """Return (gradients for the step, the batch's loss, the client's own arrays after it).

        Gradients are of the trainable tensors, arrays of the names and shapes of `context.arrays`.
        By default, the gradient of `loss`, and arrays that do not change.
        """
        grads, loss = self.loss_gradient(params, batch, context)
        return grads, loss, dict(context.arrays)

    def evaluated(self, params: Params, batch: Batch, context: ClientContext) -> Params:
        """Return the model that the client scores on its held-out samples; by default, `begin`'s.

        Args:
            params: The model as the server sent it.
            batch: One batch of the client's training samples: the first that it would take.
            context: As in training; `arrays` are what the strategy's `evaluation_payload` sent.
        """
        return self.begin(params, context)

    def loss_gradient(
        self, params: Params, batch: Batch, context: ClientContext
    ) -> tuple[Params, Tensor]:
        """Return the gradient of `loss` with respect to the trainable tensors, and its value."""

        def loss(trained: Params) -> Tensor:
            return self.loss({**params, **trained}, batch, context)

        return context.grad(loss, {name: params[name] for name in context.trainable})

    @property
    def personal(self) -> bool:
        """Whether clients score models that differ from one to the next."""
        return self.overrides("begin") or self.overrides("evaluated")

    def overrides(self, level: str) -> bool:
        """Whether this half replaces one of the levels above."""
        return getattr(type(self), level) is not getattr(ClientHalf, level)
