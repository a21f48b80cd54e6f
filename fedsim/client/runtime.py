"""What every engine needs to do a client's work: data, model, client half, seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import seeds
from fedsim.client import differentiate
from fedsim.client.differentiate import Grad
from fedsim.client.gradient import GradientEstimator
from fedsim.client.half import UNLABELLED, ClientContext, ClientHalf
from fedsim.client.work import LocalSGD, as_table
from fedsim.compression.update import Compressor
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.models.dropout import KeyedDropout
from fedsim.models.structure import state_of
from fedsim.partition.base import Partition, labelled_sizes, train_sizes
from fedsim.protection.base import Protection
from fedsim.records import Params, aligned


@dataclass(kw_only=True)
class ClientRuntime:
    """The client side of one run, shared by all virtual clients of a process.

    Attributes:
        dataset: All samples, on the device.
        partition: Who holds which.
        holdout: Share of each client's samples that it evaluates on instead of training.
        model: The module that gives the architecture; its own weights are never read after set-up.
        work, half, estimator: What a client does; see their classes.
        seed: The scenario's.
        protection: The privacy mechanism, whose `estimator` that above is.
        hides_sizes: Whether how many samples a client holds is private.
        recipe: What rebuilds this runtime in another process (`fedsim.engines.recipe`); empty where
            it was put together by hand.
        train_targets: (client, its targets) -> those it trains on, where an attack or a privacy
            mechanism changes them.
        compressor: What encodes the updates that clients send; None if they send models.
        trainable, frozen: Names of the model's parameters that clients train, and of the others.
    """

    dataset: Dataset
    partition: Partition
    holdout: float
    model: nn.Module
    work: LocalSGD
    half: ClientHalf
    estimator: GradientEstimator
    seed: int
    protection: Protection = field(default_factory=Protection)
    recipe: str = ""
    train_targets: Callable[[int, Tensor], Tensor] | None = None
    compressor: Compressor | None = None
    hides_sizes: bool = False
    trainable: tuple[str, ...] = field(init=False)
    frozen: frozenset[str] = field(init=False)
    dtypes: dict[str, torch.dtype] = field(init=False)
    drops: bool = field(init=False)

    def __post_init__(self) -> None:
        self.trainable = tuple(
            name for name, parameter in self.model.named_parameters() if parameter.requires_grad
        )
        named = dict(self.model.named_parameters())
        self.frozen = frozenset(named) - frozenset(self.trainable)
        self.dtypes = {name: tensor.dtype for name, tensor in self.initial_params().items()}
        modules = self.model.modules()
        self.drops = any(isinstance(m, KeyedDropout) and m.p > 0 for m in modules)
        private = type(self.estimator).__name__
        if self.half.overrides("gradient") and not self.estimator.plain:
            raise ConfigError(
                f"privacy: {private} cannot make the gradients of {type(self.half).__name__} "
                "private, which are not those of one loss; use privacy=none, or another strategy"
            )
        if self.half.overrides("run") and not self.estimator.plain:
            raise ConfigError(
                f"privacy: {private} makes the gradients of local steps private, and "
                f"{type(self.half).__name__} takes none; use privacy=none, or a mechanism that is "
                "made for the strategy"
            )
        idle = [f"client.{name}" for name in self.half.ignored_work if getattr(self.work, name)]
        if idle:
            raise ConfigError(
                f"{', '.join(idle)}: without effect, as the strategy's local steps are those of "
                f"Adam, without momentum or weight decay; set {'=0 and '.join(idle)}=0, or "
                "strategy.optimiser=sgd"
            )
        if self.half.full_gradient and not self.estimator.plain:
            raise ConfigError(
                f"strategy: {type(self.half).__name__} asks for the gradient of all of a client's "
                f"samples beside its local steps, which {private} does not account for; "
                "use privacy=none, or (SCAFFOLD) strategy.option=II"
            )
        if self.dataset.bags is not None:
            self._check_bags()
        if self.dataset.labelled < 1 and self.hides_sizes:
            raise ConfigError(
                f"data.labelled={self.dataset.labelled:g}: which samples have labels is drawn by "
                "how many a client holds, which the privacy mechanism hides; set data.labelled=1"
            )
        self.protection.check(self)

    def _check_bags(self) -> None:
        if not self.half.takes_bags:
            raise ConfigError(
                f"strategy: {type(self.half).__name__} needs a response for each sample, and data "
                f"set '{self.dataset.name}' has bags, of which only mean responses are known; use "
                "strategy=aggregate"
            )
        if self.holdout:
            raise ConfigError(
                f"partition.holdout={self.holdout:g}: clients hold no individual responses to "
                "score themselves on, only bags; set partition.holdout=0"
            )
        if not self.estimator.plain:
            raise ConfigError(
                f"privacy: {type(self.estimator).__name__} protects single samples, and here a "
                "sample is a bag of several; use privacy=aggregate_labels, or privacy=user_dp"
            )

    def initial_params(self) -> Params:
        """Return detached copies of what `state_of` the model returns."""
        return {name: tensor.detach().clone() for name, tensor in state_of(self.model).items()}

    def received(self, params: Params) -> Params:
        """Return a received model on this run's device and in its dtypes.

        Some of Flower's strategies send float64 whatever they were given.
        """
        device = self.dataset.train_x.device
        if self.half.queried:  # a question, whose names and dtypes are its own
            return {name: tensor.to(device) for name, tensor in params.items()}
        return aligned(
            {name: tensor.to(device, self.dtypes[name]) for name, tensor in params.items()}
        )

    def apply(self, params: Params, x: Tensor) -> Tensor:
        """Return the model's outputs on `x [B, ...]` under `params`."""
        outputs: Tensor = functional_call(self.model, params, (x,))
        return outputs

    def features(self, params: Params, x: Tensor, *, train: bool = True) -> tuple[Tensor, Tensor]:
        """Return the model's outputs on `x` and what its last linear layer was given.

        Last in the order of execution; hooks see it without a word from the model, and under
        `torch.func` as well.

        Raises:
            ConfigError: The model has no such layer.
        """
        given: list[Tensor] = []

        def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            given.append(args[0])

        linear = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        hooks = [layer.register_forward_pre_hook(note) for layer in linear]
        before = self.model.training
        try:
            self.model.train(train)
            outputs = self.apply(params, x)
        finally:
            self.model.train(before)
            for hook in hooks:
                hook.remove()
        if not given:
            raise ConfigError(
                "model: the strategy compares representations, which are what the last linear "
                f"layer is given, but {type(self.model).__name__} has no nn.Linear; use model=mlp"
            )
        return outputs, given[-1]

    def dropout(self, server_round: int, clients: Sequence[int]) -> list[torch.Generator]:
        """Return the generators of some clients' dropout masks; none where nothing is dropped."""
        if not self.drops:
            return []
        return [seeds.torch_rng(self.seed, server_round, client, "dropout") for client in clients]

    def batches(self, server_round: int, client: int, n: int) -> list[np.ndarray]:
        """Return the batches of one client's round: positions in [0, n), one array a step."""
        return self.estimator.batches(self.work, self.seed, server_round, client, n)

    def tables(
        self, server_round: int, clients: np.ndarray, sizes: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what `batches` returns for each of some clients, as a table.

        Returns:
            Positions `[S, B]`, where short batches are filled up, and their lengths `[S]`; see
            `LocalSGD.drawn`.
        """
        if type(self.estimator).batches is not GradientEstimator.batches:
            for client, n in zip(clients.tolist(), sizes, strict=True):
                yield as_table(self.batches(server_round, client, n))
            return
        generators = seeds.rngs(self.seed, server_round, clients, "batches")
        for rng, n in zip(generators, sizes, strict=True):
            yield self.work.drawn(rng, n)

    def samples(self, client: int, *, held_out: bool = False) -> np.ndarray:
        """Return a client's train-set indices for training, or for its own evaluation.

        The split is keyed by the client alone, the same in every round.
        """
        indices = self.partition.indices(client)
        if not self.holdout and self.dataset.labelled == 1 and not held_out:
            return indices
        own: np.ndarray = indices[self.positions(client, len(indices), held_out=held_out)]
        return own

    def positions(self, client: int, n: int, *, held_out: bool) -> np.ndarray:
        """Return positions in [0, n) of a client's training, or held-out, samples.

        Where not all targets are known, those that its half can learn from.
        """
        positions = self._side(client, n, held_out=held_out)
        if held_out or self.half.takes_unlabelled or self.dataset.labelled == 1:
            return positions
        return self._labelled(client, positions)

    def _labelled(self, client: int, positions: np.ndarray) -> np.ndarray:
        """Return those of a client's training samples whose targets it knows, ascending.

        Of two shares, the larger one holds all that the smaller one does.
        """
        order = seeds.rng(self.seed, 0, client, "labelled").permutation(len(positions))
        known = int(labelled_sizes(np.array(len(positions)), self.dataset.labelled))
        return positions[np.sort(order[:known])]

    def _side(self, client: int, n: int, *, held_out: bool) -> np.ndarray:
        """Return positions in [0, n) of a client's samples on one side of the holdout."""
        if not self.holdout:
            return np.arange(0 if held_out else n)
        if self.hides_sizes:  # one sample more or less must not move the others
            out = self._coins[self.partition.indices(client)] < self.holdout
            return np.flatnonzero(out if held_out else ~out)
        order = seeds.rng(self.seed, 0, client, "holdout").permutation(n)
        kept = int(train_sizes(np.array(n), self.holdout))
        return np.sort(order[kept:] if held_out else order[:kept])

    @cached_property
    def _coins(self) -> np.ndarray:
        """A uniform draw for each sample of the train set, `[N]`."""
        coins = seeds.rng(self.seed, 0, seeds.SERVER, "holdout")
        return coins.random(len(self.dataset.train_y))

    def pool(self, clients: Sequence[int], *, held_out: bool = False) -> Pool:
        """Return the samples of some clients, ready to be gathered by index.

        Without feature skew that is the data set itself, and no sample is copied.
        """
        relabel = None if held_out else self.train_targets
        hides = self.half.takes_unlabelled and self.dataset.labelled < 1 and not held_out
        if not self.partition.transforms and relabel is None and not hides:
            rows = [self.samples(client, held_out=held_out) for client in clients]
            return Pool(x=self.dataset.train_x, y=self.dataset.train_y, rows=rows)
        xs, ys, rows, start = [], [], [], 0
        for client in clients:
            indices = self.partition.indices(client)
            index = torch.from_numpy(indices).to(self.dataset.train_x.device)
            xs.append(self.partition.transform(client, self.dataset.train_x.index_select(0, index)))
            y = self.dataset.train_y[index]
            y = y if relabel is None else relabel(client, y)
            positions = self.positions(client, len(indices), held_out=held_out)
            if hides:
                known = torch.from_numpy(self._labelled(client, positions)).to(y.device)
                y, told = torch.full_like(y, UNLABELLED), y
                y[known] = told[known]
            ys.append(y)
            rows.append(start + positions)
            start += len(indices)
        if not start:  # padding points at a sample, and there is none
            return Pool(x=self.dataset.train_x[:1], y=self.dataset.train_y[:1], rows=rows)
        return Pool(x=torch.cat(xs), y=torch.cat(ys), rows=rows)

    def context(
        self,
        *,
        params: Params,
        client_arrays: Params,
        server_round: int,
        steps: int | Tensor,
        step: int = 0,
        grad: Grad = differentiate.gradient,
        gradient: Params | None = None,
    ) -> ClientContext:
        """Make the context that one client's half sees in one round."""
        return ClientContext(
            task=self.dataset.task,
            model=self.apply,
            grad=grad,
            trainable=self.trainable,
            start=params,
            arrays=client_arrays,
            server_round=server_round,
            lr=self.work.lr_at(server_round),
            steps=steps,
            step=step,
            momentum=self.work.momentum,
            features=self.features,
            gradient=gradient or {},
        )


@dataclass(frozen=True)
class Pool:
    """Samples `x [M, ...]`, `y [M, ...]` and, per client, which rows are its own."""

    x: Tensor
    y: Tensor
    rows: list[np.ndarray]

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the samples of the given rows (an index array of any shape)."""
        index = torch.from_numpy(rows).to(self.x.device)
        return self.x[index], self.y[index]
