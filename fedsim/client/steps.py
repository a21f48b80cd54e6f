"""One SGD step of A clients at once: by the layer rules where they reach, else by `torch.func`.

Shapes: A active clients (the first rows of the chunk's K), B the step's longest batch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.client.differentiate import functional_gradient
from fedsim.client.half import Batch, ClientContext, ClientHalf, Shift
from fedsim.client.objective import sample_losses_and_gradients
from fedsim.client.runtime import ClientRuntime
from fedsim.layers.model import StackedModel
from fedsim.models.dropout import install
from fedsim.records import Params


class CohortStep(abc.ABC):
    """The state of one chunk during one round.

    Args:
        runtime: Data, model, client half.
        weights: name -> `[K, ...]`, updated in place.
        start: The model as the clients received it.
        client_arrays: name -> `[K, ...]`; updated in place where the half does so.
        clients: Which, `[K]`.
        steps_K: How many steps each takes.
        server_round: 1, 2, ...
        gradient: Each client's gradient over all of its samples, where the half asks for it.

    Attributes:
        step: Which of the steps is being taken: 0, 1, ...
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        weights: Params,
        start: Params,
        client_arrays: Params,
        clients: np.ndarray,
        steps_K: Tensor,
        server_round: int,
        gradient: Params,
    ) -> None:
        self.runtime = runtime
        self.clients = clients
        self.weights = weights
        self.start, self.client_arrays, self.steps_K = start, client_arrays, steps_K
        self.server_round, self.gradient = server_round, gradient
        self.step = 0
        self.lr = runtime.work.lr_at(server_round)
        self.trained = {name: weights[name] for name in runtime.trainable if name in weights}
        self.corrects = any(runtime.half.overrides(level) for level in ("correct", "frozen"))
        self.shift: Shift | None = None
        if runtime.half.overrides("shift") and not self.corrects:
            self.shift = runtime.half.shift(self.context(client_arrays, steps_K))
        self.velocity: Params = {}
        if runtime.work.momentum:
            self.velocity = {name: torch.zeros_like(w) for name, w in self.trained.items()}
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Put each client's own parts into its weights."""
        if not self.runtime.half.overrides("begin"):
            return

        def one(arrays: Params, steps: Tensor) -> Params:
            return self.runtime.half.begin(self.start, self.context(arrays, steps))

        began = torch.vmap(one)(*self.own(slice(None)))
        for name, weights in self.weights.items():
            weights.copy_(began[name])

    @abc.abstractmethod
    def run(
        self, x: Tensor, y: Tensor, lengths: np.ndarray, dropout: list[torch.Generator]
    ) -> Tensor:
        """Step on `x [A, B, ...]`, `y [A, B, ...]` of which `lengths [A]` samples are true.

        `dropout` holds one generator per client, or none if the model has no dropout.

        Returns:
            Each client's mean batch loss before the step, `[A]`.
        """

    @abc.abstractmethod
    def add_gradient(
        self, into: Params, x: Tensor, y: Tensor, lengths: np.ndarray, share_A: Tensor
    ) -> None:
        """Add `share_A` × the gradients of a batch, as for evaluation; no step is taken."""

    def context(
        self, arrays: Params, steps: Tensor, gradient: Params | None = None
    ) -> ClientContext:
        """Return one client's context; under `vmap`, its tensors are that client's."""
        return self.runtime.context(
            params=self.start,
            client_arrays=arrays,
            server_round=self.server_round,
            steps=steps,
            step=self.step,
            grad=functional_gradient,
            gradient=gradient,
        )

    def own(self, index: slice | Tensor) -> tuple[Params, Tensor]:
        """Return (client arrays, number of steps) of some rows."""
        arrays = {name: rows[index] for name, rows in self.client_arrays.items()}
        return arrays, self.steps_K[index]

    @torch.no_grad()
    def correct_and_step(self, grads: Params, active: int) -> None:
        """Apply the half's correction and PyTorch's SGD rule to the first `active` rows."""
        weights = {name: w[:active] for name, w in self.trained.items()}
        if self.corrects:

            def correct(g: Params, w: Params, arrays: Params, steps: Tensor) -> Params:
                return self.runtime.half.correct(g, w, self.context(arrays, steps))

            grads = torch.vmap(correct)(grads, weights, *self.own(slice(active)))
        elif self.shift is not None:
            self._add_shift(self.shift, grads, weights)
        velocity = {name: v[:active] for name, v in self.velocity.items()}
        if not self.runtime.half.overrides("frozen"):
            self.runtime.work.step_(weights, grads, velocity, self.lr)
            return
        moving = (weights, velocity)
        before = [{name: t.clone() for name, t in tensors.items()} for tensors in moving]
        self.runtime.work.step_(weights, grads, velocity, self.lr)
        for name, frozen_A in self.frozen(active).items():
            for tensors, old in zip(moving, before, strict=True):
                if name in tensors:
                    mask = frozen_A.view(-1, *[1] * (tensors[name].dim() - 1))
                    tensors[name].copy_(torch.where(mask, old[name], tensors[name]))

    def frozen(self, active: int) -> Params:
        """Return which parameters stay in this step, name -> bool `[A]`."""

        def one(arrays: Params, steps: Tensor) -> Params:
            frozen = self.runtime.half.frozen(self.context(arrays, steps))
            return {name: torch.as_tensor(value) for name, value in frozen.items()}

        frozen: Params = torch.vmap(one)(*self.own(slice(active)))
        return frozen

    def _add_shift(self, shift: Shift, into: Params, weights: Params) -> None:
        """Add the half's shift to gradients (or to what they are added to), in place."""
        for name, target in into.items():
            if shift.pull:
                target.add_(weights[name], alpha=shift.pull)
                target.sub_(self._anchor(shift, name, len(target)), alpha=shift.pull)
            if name in shift.offset:
                target.add_(shift.offset[name][: len(target)])

    def _anchor(self, shift: Shift, name: str, active: int) -> Tensor:
        return self.start[name] if shift.anchor is None else shift.anchor[name][:active]

    def output_gradient(
        self, outputs: Tensor, x: Tensor, y: Tensor, lengths: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Return each client's mean loss `[A]` and the gradient of their sum, as the outputs are.

        `outputs [A*B, ...]` are no part of a graph; only a loss of the half's own is left to
        autograd.
        """
        half, (active, width) = self.runtime.half, y.shape[:2]
        if half.overrides("criterion") or half.overrides("sample_losses") or outputs.dim() > 2:
            outputs.requires_grad_()
            losses_A = self._losses_of(outputs, x, y, lengths)
            (grad,) = torch.autograd.grad(losses_A.sum(), outputs)
            return losses_A.detach(), grad
        task = self.runtime.dataset.task
        losses, grad = sample_losses_and_gradients(task, outputs, y.flatten(0, 1))
        losses_AB = losses.view(active, width)
        if int(lengths.min()) == width:
            return losses_AB.mean(1), grad.div_(width)
        counts_A = torch.from_numpy(lengths).to(y.device)
        valid_AB = torch.arange(width, device=y.device) < counts_A.unsqueeze(1)
        share_AB = valid_AB.to(grad.dtype) / counts_A.unsqueeze(1)
        losses_A = torch.where(valid_AB, losses_AB, 0).sum(1) / counts_A
        # Not by a factor of 0: what is padded with may give an infinite gradient.
        grad = torch.where(valid_AB.view(-1, 1), grad.mul_(share_AB.view(-1, 1)), 0)
        return losses_A, grad

    def _losses_of(self, outputs: Tensor, x: Tensor, y: Tensor, lengths: np.ndarray) -> Tensor:
        if self.runtime.half.overrides("criterion"):
            return self._criterion(outputs, x, y, lengths)
        return self._mean_losses(outputs, y, lengths)

    def _mean_losses(self, outputs: Tensor, y: Tensor, lengths: np.ndarray) -> Tensor:
        active, width = y.shape[:2]
        task, half = self.runtime.dataset.task, self.runtime.half
        losses_AB = half.sample_losses(task, outputs, y.flatten(0, 1))
        losses_AB = losses_AB.view(active, width)
        if int(lengths.min()) == width:
            return losses_AB.mean(1)
        counts_A = torch.from_numpy(lengths).to(y.device)
        valid_AB = torch.arange(width, device=y.device) < counts_A.unsqueeze(1)
        return torch.where(valid_AB, losses_AB, 0).sum(1) / counts_A

    def _criterion(self, outputs: Tensor, x: Tensor, y: Tensor, lengths: np.ndarray) -> Tensor:
        """Return the half's criterion per client; it sees its true batch, so lengths group."""
        outputs_AB = outputs.view(*y.shape[:2], *outputs.shape[1:])
        losses_A, half = outputs.new_zeros(len(lengths)), self.runtime.half

        def one(z: Tensor, xb: Tensor, yb: Tensor, arrays: Params, steps: Tensor) -> Tensor:
            return half.criterion(z, Batch(x=xb, y=yb), self.context(arrays, steps))

        groups = length_groups(lengths, y.device)
        for length, index in groups:
            z, xb, yb = (t[index, :length] for t in (outputs_AB, x, y))
            if half.overrides("criteria"):
                own_A = half.criteria(z, Batch(x=xb, y=yb), self.context(*self.own(index)))
            else:
                own_A = torch.vmap(one)(z, xb, yb, *self.own(index))
            if len(groups) == 1:  # all of them: an assignment would be differentiated, too
                return own_A
            losses_A[index] = own_A
        return losses_A

    def result(self) -> Params:
        """Return the clients' models, name -> `[K, ...]`, in the model's order."""
        return self.weights

    def upload(self) -> Params:
        """Return what the half sends besides the model, name -> `[K, ...]`."""
        if not self.runtime.half.overrides("upload"):
            return {}

        def one(weights: Params, gradient: Params, arrays: Params, steps: Tensor) -> Params:
            return self.runtime.half.upload(weights, self.context(arrays, steps, gradient))

        with torch.no_grad():
            own = self.own(slice(None))
            uploads: Params = torch.vmap(one)(self.weights, self.gradient, *own)
        return uploads


StepFactory = Callable[..., CohortStep]
"""Makes the step of one chunk; takes `CohortStep`'s keyword arguments."""


class RuleStep(CohortStep):
    """Layer rules: gradients of layer outputs by one backward, contracted in place."""

    def __init__(self, stacked: StackedModel, runtime: ClientRuntime, **state: object) -> None:
        super().__init__(runtime, **state)  # type: ignore[arg-type]
        self.stacked = stacked
        stacked.tape.weights = self.weights
        stacked.module.train()
        self.grads: Params = {}
        if self.corrects:
            self.grads = {name: torch.empty_like(w) for name, w in self.trained.items()}

    def run(
        self, x: Tensor, y: Tensor, lengths: np.ndarray, dropout: list[torch.Generator]
    ) -> Tensor:
        if dropout:
            install(self.stacked.module, dropout, lengths.tolist())
        if self.stacked.chain is not None:
            return self._run_by_hand(x, y, lengths)
        loss_A = self._losses(x, y, lengths)
        self._update(self.stacked.backward(loss_A.sum()), len(lengths))
        return loss_A.detach()

    def _run_by_hand(self, x: Tensor, y: Tensor, lengths: np.ndarray) -> Tensor:
        """Do as `run`, where the model is a chain: without a graph."""
        with torch.no_grad():
            outputs = self.stacked.forward_by_hand(x.flatten(0, 1), len(lengths))
        loss_A, grad = self.output_gradient(outputs, x, y, lengths)
        with torch.no_grad():
            grads = self.stacked.backward_by_hand(grad)
        self._update(grads, len(lengths))
        return loss_A

    def add_gradient(
        self, into: Params, x: Tensor, y: Tensor, lengths: np.ndarray, share_A: Tensor
    ) -> None:
        self.stacked.module.eval()
        loss_A = self._losses(x, y, lengths)
        self.stacked.contract_(into, self.stacked.backward((share_A * loss_A).sum()), 1.0)

    def _losses(self, x: Tensor, y: Tensor, lengths: np.ndarray) -> Tensor:
        outputs = self.stacked.forward(x.flatten(0, 1), len(lengths))
        return self._losses_of(outputs, x, y, lengths)

    @torch.no_grad()
    def _update(self, output_grads: list[Tensor | None], active: int) -> None:
        work = self.runtime.work
        weights = {name: w[:active] for name, w in self.trained.items()}
        if self.corrects:
            grads = {name: buffer[:active] for name, buffer in self.grads.items()}
            torch._foreach_zero_(list(grads.values()))
            self.stacked.contract_(grads, output_grads, 1.0)
            self.correct_and_step(grads, active)
        elif work.momentum:  # contract straight into the momentum buffer
            velocity = {name: v[:active] for name, v in self.velocity.items()}
            buffers, rows = list(velocity.values()), list(weights.values())
            torch._foreach_mul_(buffers, work.momentum)
            if work.weight_decay:
                torch._foreach_add_(buffers, rows, alpha=work.weight_decay)
            if self.shift is not None:
                self._add_shift(self.shift, velocity, weights)
            self.stacked.contract_(velocity, output_grads, 1.0)
            torch._foreach_add_(rows, buffers, alpha=-self.lr)
        else:  # plain SGD: straight into the weights
            if self.shift is not None:
                self._step_by_shift(self.shift, weights)
            elif work.weight_decay:
                torch._foreach_mul_(list(weights.values()), 1 - self.lr * work.weight_decay)
            self.stacked.contract_(weights, output_grads, -self.lr)

    def _step_by_shift(self, shift: Shift, weights: Params) -> None:
        """Take the part of a plain SGD step that is known before its gradient."""
        lr, decay = self.lr, self.runtime.work.weight_decay
        for name, w in weights.items():
            if shift.pull:
                anchor = self._anchor(shift, name, len(w))
                if not decay:
                    w.lerp_(anchor, lr * shift.pull)  # w + η pull (anchor − w)
                else:
                    w.mul_(1 - lr * (decay + shift.pull)).add_(anchor, alpha=lr * shift.pull)
            elif decay:
                w.mul_(1 - lr * decay)
            if name in shift.offset:
                w.sub_(shift.offset[name][: len(w)], alpha=lr)


class PrivateStep(RuleStep):
    """Per-sample gradients made private on the layer rules, by book-keeping (Bu et al. 2023).

    One backward for the gradients of layer outputs; from these the norm of each sample's gradient;
    then one contraction in which each sample has its own weight. No per-sample gradient is kept,
    save where a layer's rule finds that cheaper.
    """

    def __init__(self, stacked: StackedModel, runtime: ClientRuntime, **state: object) -> None:
        super().__init__(stacked, runtime, **state)
        like = {name: self.start[name] for name in runtime.trainable}
        privatiser = runtime.estimator.privatiser(like, self.clients, self.server_round)
        if privatiser is None:
            raise NotImplementedError(f"{type(runtime.estimator).__name__} has no stacked form")
        self.privatiser = privatiser
        self.direct = not (self.corrects or self.shift or runtime.work.momentum)
        if not self.direct and not self.grads:
            self.grads = {name: torch.empty_like(w) for name, w in self.trained.items()}

    def run(
        self, x: Tensor, y: Tensor, lengths: np.ndarray, dropout: list[torch.Generator]
    ) -> Tensor:
        active, width = y.shape[:2]
        if dropout:
            install(self.stacked.module, dropout, lengths.tolist())
        counts_A = torch.from_numpy(lengths).to(y.device)
        true_AB = torch.arange(width, device=y.device) < counts_A.unsqueeze(1)
        losses_AB = torch.where(true_AB, self._sample_losses(x, y), 0)
        output_grads = self.stacked.backward(losses_AB.sum())
        with torch.no_grad():
            square_norms = self.stacked.square_norms(output_grads)
            output_grads = self._finite(output_grads, square_norms)
            weights = self.privatiser.weights(square_norms, true_AB)
            self._private_update(output_grads, weights, active)
        return losses_AB.detach().sum(1) / counts_A.clamp(min=1)

    def _sample_losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample, as if it were alone in its batch, `[A, B]`."""
        active, half = len(y), self.runtime.half
        outputs = self.stacked.forward(x.flatten(0, 1), active)
        if not half.overrides("criterion"):
            losses = half.sample_losses(self.runtime.dataset.task, outputs, y.flatten(0, 1))
            return losses.view(y.shape[:2])
        outputs_AB = outputs.view(*y.shape[:2], *outputs.shape[1:])

        def client(z_B: Tensor, x_B: Tensor, y_B: Tensor, arrays: Params, steps: Tensor) -> Tensor:
            context = self.context(arrays, steps)
            return per_sample(half, z_B, Batch(x=x_B, y=y_B), context)

        losses_AB: Tensor = torch.vmap(client)(outputs_AB, x, y, *self.own(slice(active)))
        return losses_AB

    def _finite(
        self, output_grads: list[Tensor | None], square_norms: Params
    ) -> list[Tensor | None]:
        """Leave out samples whose gradient is not finite, which no weight of 0 would do."""
        good_AB = torch.isfinite(torch.stack(list(square_norms.values()))).all(0)
        if bool(good_AB.all()):
            return output_grads
        for square_AB in square_norms.values():
            square_AB.masked_fill_(~good_AB, 0)
        return self.stacked.without(output_grads, good_AB.flatten())

    def _private_update(
        self,
        output_grads: list[Tensor | None],
        weights_AB: Tensor | Params,
        active: int,
    ) -> None:
        denominator = self.privatiser.denominator
        rows = {name: w[:active] for name, w in self.trained.items()}
        if self.direct:  # straight into the weights: no buffer, no further pass
            alpha = -self.lr / denominator
            if self.runtime.work.weight_decay:
                decay = 1 - self.lr * self.runtime.work.weight_decay
                torch._foreach_mul_(list(rows.values()), decay)
            self.stacked.contract_(rows, output_grads, alpha, weights_AB)
            self._add_noise(rows, alpha, active)
            return
        grads = {name: buffer[:active] for name, buffer in self.grads.items()}
        torch._foreach_zero_(list(grads.values()))
        self.stacked.contract_(grads, output_grads, 1.0 / denominator, weights_AB)
        self._add_noise(grads, 1.0 / denominator, active)
        self.correct_and_step(grads, active)

    def _add_noise(self, into: Params, alpha: float, active: int) -> None:
        """Add alpha × this step's noise to the rows of `into`, client by client."""
        flat = [rows.view(len(rows), -1) for rows in into.values()]
        sizes = [rows_KP.shape[1] for rows_KP in flat]
        for k, noise_P in enumerate(self.privatiser.noise(active)):
            parts = torch.split(noise_P, sizes)
            torch._foreach_add_([rows[k] for rows in flat], list(parts), alpha=alpha)


def per_sample(half: ClientHalf, outputs_B: Tensor, batch: Batch, context: ClientContext) -> Tensor:
    """Return a half's criterion of each sample, as if it were alone in its batch, `[B]`.

    So no normaliser of a batch ties samples together, whatever the criterion does.
    """

    def one(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        alone = Batch(x=x.unsqueeze(0), y=y.unsqueeze(0))
        return half.criterion(z.unsqueeze(0), alone, context)

    losses: Tensor = torch.vmap(one)(outputs_B, batch.x, batch.y)
    return losses


class VmapStep(CohortStep):
    """`torch.func`: for losses that need the parameters, and for layers without a rule."""

    def run(
        self, x: Tensor, y: Tensor, lengths: np.ndarray, dropout: list[torch.Generator]
    ) -> Tensor:
        self.runtime.model.train()
        grads, losses_A = self._gradients(x, y, lengths)
        self.correct_and_step(grads, len(lengths))
        return losses_A

    def add_gradient(
        self, into: Params, x: Tensor, y: Tensor, lengths: np.ndarray, share_A: Tensor
    ) -> None:
        self.runtime.model.eval()
        grads, _ = self._gradients(x, y, lengths)
        for name, rows in grads.items():
            into[name].add_(rows * share_A.view(-1, *[1] * (rows.dim() - 1)))

    def _gradients(self, x: Tensor, y: Tensor, lengths: np.ndarray) -> tuple[Params, Tensor]:
        active = len(lengths)
        grads = {name: torch.empty_like(w[:active]) for name, w in self.trained.items()}
        losses_A = x.new_zeros(active, dtype=next(iter(grads.values())).dtype)

        replaced = self.runtime.half.overrides("gradient")

        def one(
            weights: Params, xb: Tensor, yb: Tensor, arrays: Params, steps: Tensor
        ) -> tuple[Params, Tensor, Params]:
            half, batch, context = self.runtime.half, Batch(x=xb, y=yb), self.context(arrays, steps)
            if replaced:
                return half.gradient(weights, batch, context)
            return *half.loss_gradient(weights, batch, context), {}

        for length, index in length_groups(lengths, y.device):
            weights = {name: w[index] for name, w in self.weights.items()}
            xb, yb = (t[index, :length] for t in (x, y))
            part, values, own = torch.vmap(one)(weights, xb, yb, *self.own(index))
            losses_A[index] = values
            for rows, new in ((grads, part), (self.client_arrays, own)):
                for name, tensor in new.items():
                    rows[name][index] = tensor
        return grads, losses_A


def length_groups(lengths: np.ndarray, device: torch.device) -> list[tuple[int, slice | Tensor]]:
    """Return [(batch length, rows with that length)]; usually the full one and a few short."""
    if lengths.min() == lengths.max():
        return [(int(lengths[0]), slice(len(lengths)))]  # views of the weights, no copies
    return [
        (int(length), torch.from_numpy(np.flatnonzero(lengths == length)).to(device))
        for length in np.unique(lengths)
    ]
