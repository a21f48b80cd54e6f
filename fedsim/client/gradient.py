"""Gradient estimators: how a batch becomes a gradient, and which batches there are.

The scenario's `privacy` group picks one. An estimator that is not plain works on per-sample
gradients, in two forms that make the same of the same draws: one client at a time (`begin`), and
for K clients at once on the layer rules (`privatiser`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.client.half import Batch, ClientContext
from fedsim.client.work import LocalSGD
from fedsim.models.dropout import install
from fedsim.records import Params

if TYPE_CHECKING:
    from fedsim.client.runtime import ClientRuntime

BatchGradient = Callable[
    [Params, Batch, ClientContext, Sequence[torch.Generator]], tuple[Params, Tensor]
]
"""(the client's model, a batch, the context, dropout's generators) -> (gradients of the trainable
tensors, the batch's loss)."""


class GradientEstimator(abc.ABC):
    """Estimates the gradient of one client's batch."""

    @property
    def plain(self) -> bool:
        """Whether this is the exact gradient, which engines may compute in any way they like."""
        return False

    @abc.abstractmethod
    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        """Return the gradient with respect to every tensor of `params`, and the batch's loss."""

    def batches(
        self, work: LocalSGD, seed: int, server_round: int, client: int, n: int
    ) -> list[np.ndarray]:
        """Return the batches of one client's round: positions in [0, n), one array a step."""
        return work.batches(seed, server_round, client, n)

    def check(self, runtime: ClientRuntime) -> None:  # noqa: B027 (most have nothing to check)
        """Check that the run's model and client half can be worked with.

        Raises:
            ConfigError: They cannot; the message says what would do.
        """

    def check_alone(self, runtime: ClientRuntime) -> None:  # noqa: B027
        """Check also what is needed only where clients train one by one; may be slow.

        Raises:
            ConfigError: See `check`.
        """

    def begin(self, runtime: ClientRuntime, *, server_round: int, client: int) -> BatchGradient:
        """Return what makes the gradients of one client's round."""

        def of(
            params: Params,
            batch: Batch,
            context: ClientContext,
            dropout: Sequence[torch.Generator],
        ) -> tuple[Params, Tensor]:
            if dropout:
                install(runtime.model, dropout, [len(batch.y)])
            trained = {name: params[name] for name in runtime.trainable}

            def loss(leaves: Params, batch: Batch) -> Tensor:
                return runtime.half.loss({**params, **leaves}, batch, context)

            return self.estimate(loss, trained, batch)

        return of

    def privatiser(self, like: Params, clients: np.ndarray, server_round: int) -> Privatiser | None:
        """Return the stacked form for some clients of a round; None where there is none.

        Args:
            like: The trainable tensors of one client.
            clients: `[K]`.
            server_round: 1, 2, ...
        """
        return None


class Privatiser(abc.ABC):
    """Turns per-sample gradients of K clients into private ones; keeps what steps hand on.

    The gradient of client k is (Σ_b w_kb g_kb + std_k · N(0, I)) / `denominator`, with the weights
    of `weights` and the draws of `noise`.
    """

    denominator: float
    """What the noisy sum is divided by: public, and the same whatever was drawn."""

    @abc.abstractmethod
    def weights(self, square_norms: Mapping[str, Tensor], true_AB: Tensor) -> Tensor | Params:
        """Return w of the first A clients, `[A, B]`, or one such for each tensor; 0 for padding.

        Args:
            square_norms: Tensor's name -> squared L2 norm of each sample's gradient, `[A, B]`.
            true_AB: Which of the columns are samples.
        """

    @abc.abstractmethod
    def noise(self, active: int) -> Iterator[Tensor]:
        """Yield this step's noise of the first A clients, one after another, of its scale.

        Each is `[P]`: all tensors flattened one after another. Drawn as it is asked for, once per
        step and after `weights`; asked for in full, it ends the step.
        """


class Plain(GradientEstimator):
    """The exact gradient of the batch: no privacy mechanism."""

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        value = loss(leaves, batch)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        filled = [
            torch.zeros_like(leaf) if grad is None else grad
            for grad, leaf in zip(grads, leaves.values(), strict=True)
        ]
        return dict(zip(leaves, filled, strict=True)), value.detach()

    @property
    def plain(self) -> bool:
        return True
