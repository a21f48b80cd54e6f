"""Mechanisms with canaries in them: all that is theirs is done by the mechanism itself.

A canary is handed over `TOO_LONG`, so that the mechanism's clipping makes it as long as it allows,
and is left to the mechanism's sampling and noise.

Shapes: M canaries, P parameters, A clients at work, B samples of each.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.client.gradient import BatchGradient, GradientEstimator, Privatiser
from fedsim.client.half import Batch
from fedsim.client.runtime import ClientRuntime
from fedsim.client.work import LocalSGD
from fedsim.errors import ConfigError
from fedsim.protection import Protection
from fedsim.records import Params, Scalar
from privacy.audit.delegate import Delegate

TOO_LONG = 1e6
"""Length of a canary before it is clipped; a clipping norm above it would go untested."""


MANY = 10**9
"""Samples that a canary says it holds."""


@dataclass(frozen=True, kw_only=True)
class Diracs:
    """M canaries along coordinate axes.

    Attributes:
        shapes: Of the trainable tensors, in the model's order.
        coordinate_M: Position among all parameters, laid flat; no two are equal.
        sign_M: -1 or 1.
        included_M: The coins.
        replaced: Whether a canary that is out contributes the opposite, instead of nothing.
    """

    shapes: Mapping[str, torch.Size]
    coordinate_M: np.ndarray
    sign_M: np.ndarray
    included_M: np.ndarray
    replaced: bool

    def __len__(self) -> int:
        return len(self.coordinate_M)

    @cached_property
    def length_M(self) -> np.ndarray:
        """What each contributes along its axis, before clipping; 0 for nothing."""
        out = -1.0 if self.replaced else 0.0
        length_M: np.ndarray = TOO_LONG * self.sign_M * np.where(self.included_M, 1.0, out)
        return length_M

    @cached_property
    def places(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensor's name and the index in it, of each canary."""
        names, sizes = list(self.shapes), [s.numel() for s in self.shapes.values()]
        ends = np.cumsum(sizes)
        which_M = np.searchsorted(ends, self.coordinate_M, side="right")
        places: list[tuple[str, tuple[int, ...]]] = []
        for which, coordinate in zip(which_M, self.coordinate_M, strict=True):
            offset = int(coordinate) - int(ends[which] - sizes[which])
            shape = self.shapes[names[which]]
            places.append((names[which], tuple(int(i) for i in np.unravel_index(offset, shape))))
        return places

    def moved(self, before: Params, after: Params) -> np.ndarray:
        """Return how far each canary's coordinate moved its way, `[M]`."""
        moved = [float(after[name][at]) - float(before[name][at]) for name, at in self.places]
        moved_M: np.ndarray = np.array(moved) * self.sign_M
        return moved_M


class Planted(Delegate, abc.ABC):
    """A mechanism with canaries in it.

    Args:
        inner: The mechanism.
        diracs: The canaries.
        silent: Whether all other data contribute nothing.
    """

    client: int | None
    """Whose units the canaries are; None if each is a client of its own."""

    towards = 1.0
    """Whether the model moves along a contribution (1) or against it (-1: a gradient)."""

    def __init__(self, inner: Protection, diracs: Diracs, *, silent: bool) -> None:
        super().__init__(inner)
        self.diracs, self.silent = diracs, silent
        self.central = type(inner).receive is not Protection.receive
        self.seen_M = np.zeros(len(diracs))

    @property
    def seals(self) -> bool:
        return True

    @property
    def threat(self) -> str:
        """The adversary, in words."""
        sees = "the models of all rounds" if self.central else "every update of the clients"
        knows = "all other data" if self.silent else "the mechanism and the canaries"
        return f"sees {sees}; knows {knows}; contributes worst-case {self.contribution}"

    contribution = ""

    def scores(self, initial: Params, final: Params) -> np.ndarray:
        """Return each canary's score, `[M]`: higher if it looks included."""
        if not self.central:
            return self.seen_M
        return self.towards * self.diracs.moved(initial, final)

    def to_json(self) -> dict[str, Any]:
        """Return what was drawn before the run."""
        diracs = self.diracs
        return {
            "included": diracs.included_M.astype(int).tolist(),
            "coordinates": diracs.coordinate_M.tolist(),
            "signs": diracs.sign_M.astype(int).tolist(),
            "out_contributes": "the opposite" if diracs.replaced else "nothing",
        }

    def see(self, canaries: np.ndarray, weights: Params, start: Params, row: int) -> None:
        """Add to some canaries' scores what one client's update does at their coordinates."""
        for j in canaries:
            name, at = self.diracs.places[j]
            moved = float(weights[name][(row, *at)]) - float(start[name][at])
            self.seen_M[j] += self.towards * float(self.diracs.sign_M[j]) * moved


class PlantedUsers(Planted):
    """Canaries that are clients.

    Args:
        inner: The mechanism.
        diracs: The canaries.
        client_M: Which client each of them is.
        silent: Whether all other clients send the model as they received it.
    """

    client = None
    contribution = "updates"

    def __init__(
        self, inner: Protection, diracs: Diracs, client_M: np.ndarray, *, silent: bool
    ) -> None:
        super().__init__(inner, diracs, silent=silent)
        self.client_M = client_M
        self._canary = {int(client): j for j, client in enumerate(client_M)}

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "clients": self.client_M.tolist()}

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        mine = [(row, self._canary.get(int(client))) for row, client in enumerate(clients)]
        for row, canary in mine:
            if canary is None and not self.silent:
                continue
            for name, tensor in weights.items():
                tensor[row] = start[name]
            if canary is not None:
                name, at = self.diracs.places[canary]
                weights[name][(row, *at)] += float(self.diracs.length_M[canary])
        # A client that weighs by its samples may hold any number of them: the worst case is many.
        is_canary_K = np.array([canary is not None for _, canary in mine], bool)
        num_examples = np.where(is_canary_K, MANY, num_examples)
        sent: Params = {}
        if self.inner.seals:
            sent = self.inner.seal_(weights, start, clients, server_round, num_examples, told)
        if not self.central:
            for row, canary in mine:
                if canary is not None:
                    self.see(np.array([canary]), weights, start, row)
        return sent


class PlantedExamples(Planted):
    """Canaries that are samples of one client.

    Args:
        inner: The mechanism.
        diracs: The canaries.
        client: Whose they are.
        silent: Whether all other samples' gradients are left out.
    """

    towards = -1.0
    contribution = "gradients"

    def __init__(self, inner: Protection, diracs: Diracs, client: int, *, silent: bool) -> None:
        super().__init__(inner, diracs, silent=silent)
        self.client = client
        self._estimator = _PlantedGradient(inner.estimator, self)

    @property
    def estimator(self) -> GradientEstimator:
        return self._estimator

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "client": self.client}

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        sent: Params = {}
        if self.inner.seals:
            sent = self.inner.seal_(weights, start, clients, server_round, num_examples, told)
        if not self.central:
            for row in np.flatnonzero(clients == self.client):
                self.see(np.arange(len(self.diracs)), weights, start, int(row))
        return sent


class _PlantedGradient(GradientEstimator):
    """The mechanism's estimator, whose sampler and clipping see the canaries as further samples."""

    def __init__(self, inner: GradientEstimator, planted: PlantedExamples) -> None:
        self.inner, self.planted = inner, planted
        self.drawn: list[np.ndarray] = []
        """The canaries in each of the client's batches of this round."""

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        return self.inner.estimate(loss, params, batch)

    def batches(
        self, work: LocalSGD, seed: int, server_round: int, client: int, n: int
    ) -> list[np.ndarray]:
        if client != self.planted.client:
            return self.inner.batches(work, seed, server_round, client, n)
        # The last of what the sampler takes for the client's samples are the canaries.
        own = self.inner.batches(work, seed, server_round, client, n + len(self.planted.diracs))
        self.drawn = [positions[positions >= n] - n for positions in own]
        return [positions[positions < n] for positions in own]

    def check(self, runtime: ClientRuntime) -> None:
        self.inner.check(runtime)

    def check_alone(self, runtime: ClientRuntime) -> None:
        raise ConfigError(
            "audit=canaries: canary gradients are planted in the stacked form of the mechanism; "
            "use engine=cohort, and a model of standard layers"
        )

    def begin(self, runtime: ClientRuntime, *, server_round: int, client: int) -> BatchGradient:
        raise NotImplementedError("refused by check_alone")

    def privatiser(self, like: Params, clients: np.ndarray, server_round: int) -> Privatiser | None:
        inner = self.inner.privatiser(like, clients, server_round)
        if inner is None:
            return None
        rows = np.flatnonzero(clients == self.planted.client)
        row = int(rows[0]) if len(rows) else None
        return _PlantedPrivatiser(inner, self.planted, row, self.drawn)


class _PlantedPrivatiser(Privatiser):
    def __init__(
        self, inner: Privatiser, planted: PlantedExamples, row: int | None, drawn: list[np.ndarray]
    ) -> None:
        self.inner, self.planted, self.row, self.drawn = inner, planted, row, drawn
        self.denominator = inner.denominator
        self.step = -1
        self.added: list[tuple[int, float]] = []
        """(coordinate, length) of the canaries in this step, as clipped."""

    def noise(self, active: int) -> Iterator[Tensor]:
        for row, noise_P in enumerate(self.inner.noise(active)):
            if row == self.row:  # both are part of one sum
                for coordinate, length in self.added:
                    noise_P[coordinate] += length
            yield noise_P

    def weights(self, square_norms: Mapping[str, Tensor], true_AB: Tensor) -> Tensor | Params:
        self.step += 1
        diracs, width = self.planted.diracs, true_AB.shape[1]
        if self.planted.silent:
            true_AB = torch.zeros_like(true_AB)
            square_norms = {name: torch.zeros_like(s) for name, s in square_norms.items()}
        at_work = self.row is not None and self.row < len(true_AB)
        sampled = self.drawn[self.step] if at_work else np.arange(0)
        sampled = sampled[diracs.length_M[sampled] != 0]
        squares = {
            name: torch.cat([s, s.new_zeros(len(s), len(sampled))], dim=1)
            for name, s in square_norms.items()
        }
        more = true_AB.new_zeros(len(true_AB), len(sampled))
        for column, j in enumerate(sampled):
            squares[diracs.places[j][0]][self.row, width + column] = float(diracs.length_M[j]) ** 2
            more[self.row, column] = True
        weights = self.inner.weights(squares, torch.cat([true_AB, more], dim=1))
        self.added = []
        for column, j in enumerate(sampled):
            of = weights if isinstance(weights, Tensor) else weights[diracs.places[j][0]]
            length = float(of[self.row, width + column]) * float(diracs.length_M[j])
            self.added.append((int(diracs.coordinate_M[j]), length))

        def own(w_AB: Tensor) -> Tensor:
            return w_AB[:, :width] * (0 if self.planted.silent else 1)

        if isinstance(weights, Tensor):
            return own(weights)
        return {name: own(w_AB) for name, w_AB in weights.items()}
