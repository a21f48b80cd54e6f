"""The client half of an algorithm: pure functions on tensors, in levels of override.

Smallest first; take the first that says what the algorithm does:

1. `criterion(outputs, batch, context)`: one client, one batch: a scalar of the model's outputs.
   Enough for margins, bag losses, reconstruction; runs on the layer rules.
2. `loss(params, batch, context)`: the same with the parameters at hand, for losses that need more
   than one forward pass (MOON). Runs through `torch.func` in the cohort engine.
3. `shift(context)`: a term added to every gradient that is linear in the parameters (FedProx,
   SCAFFOLD, FedDyn); costs the cohort engine one pass over the weights.
4. `correct(grads, params, context)`: anything else that the algorithm makes of a gradient.
5. `upload(params, context)`: what goes back to the server besides the model.

Algorithms whose clients have models of their own need more:

6. `begin(params, context)`: the model that the local work starts from, and that the client scores:
   what the server sent, with the client's own head or normalisation layers put in (FedPer).
7. `frozen(context)`: the parameters that the step leaves alone (FedRep's head, then body).
8. `gradient(params, batch, context)`: in place of the gradient of one batch, with further ones,
   and new values of the client's own arrays (Ditto, pFedMe, Per-FedAvg). Exact gradients only:
   refused under a private estimator. Runs through `torch.func` in the cohort engine.
9. `evaluated(params, batch, context)`: the model that the client scores, where that is not `begin`:
   one that it keeps (Ditto), or one adapted to its own samples first (Per-FedAvg).

And for what is not SGD at all:

10. `run(cohort)`: the whole of the local work of K clients, with per-sample gradients at hand
    (DIFF2's clipped sums). Then `loss` is what is differentiated, the levels about steps and
    batches are not called, and what is sent back need not be a model.

11. `score(cohort)`: the whole of K clients' evaluation, for models that are made in it (a mixture
    that is learnt on the client's labelled samples) and are no tensors of the run's model.

The engine owns the loop, the batches and the optimiser step. A client half never loops over
clients and never knows which engine runs it: the cohort engine calls the same functions under
`torch.func.vmap`, so they must be plain tensor algebra without data-dependent Python branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.client.differentiate import Grad, gradient
from fedsim.client.objective import sample_losses
from fedsim.data.dataset import Task
from fedsim.records import Params

if TYPE_CHECKING:
    from fedsim.client.whole import Cohort, Worked


UNLABELLED = -1
"""The target of a sample whose class its client does not know; see `takes_unlabelled`."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One mini-batch of one client: inputs `x [B, ...]` and targets `y [B, ...]`."""

    x: Tensor
    y: Tensor


def _no_features(params: Params, x: Tensor, *, train: bool = True) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("this context was made without a model whose layers are known")


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
        momentum: Of the local steps.
        features: `features(params, x) -> (outputs, z)`: the model's outputs and its representation
            of the inputs, which is what its last linear layer was given; `train=False` runs the
            model as for evaluation, without dropout.
        gradient: If the half asks for it (`full_gradient`), that of the mean loss of all of the
            client's samples, at `start`.
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
    momentum: float = 0.0
    features: Callable[..., tuple[Tensor, Tensor]] = _no_features
    gradient: Mapping[str, Tensor] = field(default_factory=dict)

    def scalar(self, value: float | Tensor) -> Tensor:
        """Return a number as a 0-d tensor of the model's precision, as for `upload`."""
        if isinstance(value, Tensor):
            return value
        known = (*self.start.values(), *self.arrays.values())  # who is sent no model has its own
        like = next(t for t in known if t.is_floating_point())
        return torch.full((), value, dtype=like.dtype, device=like.device)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What is added to every gradient: pull · (w − anchor) + offset.

    Attributes:
        pull: A number >= 0; the same for all tensors.
        anchor: name -> tensor of the parameter's shape; None for the model as received.
        offset: name -> tensor of the parameter's shape; may leave out some, or name others.
    """

    pull: float = 0.0
    anchor: Mapping[str, Tensor] | None = None
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def onto(self, grads: Params, params: Params, start: Mapping[str, Tensor]) -> Params:
        """Return shifted gradients."""
        anchor, shifted = start if self.anchor is None else self.anchor, {}
        for name, grad in grads.items():
            if self.pull:
                grad = grad + self.pull * (params[name] - anchor[name])
            shifted[name] = grad + self.offset[name] if name in self.offset else grad
        return shifted


class ClientHalf:
    """The default client half: the task's mean loss, plain gradients, nothing else sent back."""

    full_gradient: bool = False
    """Whether `context.gradient` is wanted; it costs a pass over the client's samples."""

    queried: bool = False
    """Whether it answers questions and needs no model; see `fedsim.query`."""

    takes_unlabelled: bool = False
    """Whether it learns from samples without a target, too: those of class `UNLABELLED`, where the
    data set says that not all are known (`Dataset.labelled`). Others hold those that have one."""

    ignored_work: tuple[str, ...] = ()
    """Keys of the `client` group that have no effect on its work, and must be 0."""

    takes_bags: bool = False
    """Whether a sample may be a bag (`Dataset.bags`): x `[B, k, ...]`, outputs `[B, k, ...]`."""

    def sample_losses(self, task: Task, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss, `[B]`; by default, the task's.

        A criterion that is their mean need not be overridden: the cohort engine asks for the losses
        of all clients of a step in one call, where it asks for a criterion client by client.
        """
        return sample_losses(task, outputs, y)

    def criterion(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        """Return the batch's loss, a scalar, from the model's outputs `[B, ...]`."""
        return self.sample_losses(context.task, outputs, batch.y).mean()

    def criteria(self, outputs: Tensor, batch: Batch, context: ClientContext) -> Tensor:
        """Return the `criterion` of A clients' batches, `[A]`, from outputs and y `[A, B, ...]`.

        Need not be overridden: the cohort engine maps `criterion` over clients. A half that
        overrides `criterion` and has a cheaper form for all clients at once gives it here;
        `context.arrays` are then `[A, ...]`.
        """
        raise NotImplementedError("the default half has no form of its own")

    def loss(self, params: Params, batch: Batch, context: ClientContext) -> Tensor:
        """Return the batch's loss, a scalar; by default, the criterion of one forward pass."""
        return self.criterion(context.model(params, batch.x), batch, context)

    def shift(self, context: ClientContext) -> Shift:
        """Return what is added to every gradient of this round; by default, nothing.

        Elementwise algebra of the context's tensors only: the cohort engine calls it once for all
        clients of a chunk, whose `context.arrays` (and the result) then have a leading axis.
        """
        return Shift()

    def correct(self, grads: Params, params: Params, context: ClientContext) -> Params:
        """Return the gradients that the step shall use; by default, with `shift` added."""
        return self.shift(context).onto(grads, params, context.start)

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

    def run(self, cohort: Cohort) -> Worked:
        """Do the whole of K clients' local work, in place of steps; see `fedsim.client.whole`.

        Called with one client by the engines that take them one by one, with many by others: what
        is sent for one of them must not depend on the others.
        """
        raise NotImplementedError("the default half takes steps")

    def score(self, cohort: Cohort) -> dict[str, Tensor]:
        """Return K clients' scores on their held-out samples, name -> `[K]`.

        In place of the model's, by the names of `fedsim.client.objective.score_names`. As in `run`,
        a client's must not depend on the others.
        """
        raise NotImplementedError("the default half has its model scored")

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
