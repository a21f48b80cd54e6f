"""Two Gaussian mechanisms, whole on a page, with a defect that can be switched on: less noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.gradient import GradientEstimator, Privatiser
from fedsim.client.half import Batch
from fedsim.client.work import LocalSGD
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Protection, Setting, Statement
from fedsim.records import Params, Scalar
from privacy.accountant import epsilon
from privacy.events import Event, Gaussian, Poisson, Unsampled

CLIP = 0.5


@dataclass(frozen=True, kw_only=True)
class Users(PrivacyPart):
    """Every client clips its update and adds noise; the server sees each of them.

    Attributes:
        noise_multiplier: z.
        factor: What the noise is secretly multiplied by.
        relation: Of the claim.
    """

    noise_multiplier: Annotated[float, Range(gt=0)] = 1.0
    factor: float = 1.0
    relation: str = "add_remove"

    hides_sizes = True

    def bind(self, setting: Setting) -> Protection:
        return _Users(self, setting)


class _Counted(Protection):
    def __init__(self, part: Any, setting: Setting, event: Event, unit: str) -> None:
        self.part, self.setting, self.event, self.unit = part, setting, event, unit
        self.rounds = 0

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        line = {"events": [self.event.to_json()], "clients": clients.tolist()}
        return (line,) if server_round else ()

    def record(self, line: Line) -> None:
        self.rounds += 1

    def statement(self) -> Statement:
        return self.claim(self.rounds)

    def planned(self) -> Statement:
        return self.claim(self.setting.rounds)

    def claim(self, rounds: int) -> Statement:
        relation = self.part.relation
        spent = epsilon([self.event.times(rounds)], delta=1e-5, relation=relation)
        return Statement(
            mechanism="a toy",
            epsilon=spent.epsilon,
            delta=1e-5,
            unit=self.unit,
            relation=relation,
            sampling="as the test says",
            accountant=spent.accountant,
            trust="nobody",
            noise="keyed",
        )


class _Users(_Counted):
    seals = True  # type: ignore[assignment]

    def __init__(self, part: Users, setting: Setting) -> None:
        gaussian = Gaussian(noise_multiplier=part.noise_multiplier)
        super().__init__(part, setting, Event(mechanism=gaussian, sampling=Unsampled()), "user")

    def seal_(
        self,
        weights: Params,
        start: Params,
        clients: np.ndarray,
        server_round: int,
        num_examples: np.ndarray,
        told: Mapping[str, Scalar],
    ) -> Params:
        std = self.part.factor * self.part.noise_multiplier * CLIP
        for row, client in enumerate(clients):
            update = {name: weights[name][row] - start[name] for name in weights}
            norm = torch.stack([u.square().sum() for u in update.values()]).sum().sqrt()
            rng = seeds.torch_rng(self.setting.seed, server_round, int(client), "toy-noise")
            for name, u in update.items():
                noise = std * torch.randn(u.shape, generator=rng)
                weights[name][row] = start[name] + u * min(1.0, CLIP / float(norm + 1e-12)) + noise
        return {}


@dataclass(frozen=True, kw_only=True)
class Examples(PrivacyPart):
    """DP-SGD on Poisson batches: flat clipping, noise on the sum.

    Attributes:
        noise_multiplier: z.
        rate: q.
        factor: What the noise is secretly multiplied by.
        rate_factor: What q is secretly multiplied by.
    """

    noise_multiplier: Annotated[float, Range(gt=0)] = 1.0
    rate: float = 1.0
    factor: float = 1.0
    rate_factor: float = 1.0
    relation: str = "add_remove"

    hides_sizes = True

    def bind(self, setting: Setting) -> Protection:
        return _Examples(self, setting)


class _Examples(_Counted):
    def __init__(self, part: Examples, setting: Setting) -> None:
        event = Event(
            mechanism=Gaussian(noise_multiplier=part.noise_multiplier),
            sampling=Poisson(rate=part.rate),
            count=setting.work.steps or 1,
        )
        super().__init__(part, setting, event, "example")
        self._estimator = _Estimator(part, setting.seed)

    @property
    def estimator(self) -> GradientEstimator:
        return self._estimator


class _Estimator(GradientEstimator):
    def __init__(self, part: Examples, seed: int) -> None:
        self.part, self.seed = part, seed

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        raise NotImplementedError

    def batches(
        self, work: LocalSGD, seed: int, server_round: int, client: int, n: int
    ) -> list[np.ndarray]:
        rng, q = seeds.rng(seed, server_round, client, "toy-batches"), self.part.rate
        q *= self.part.rate_factor
        return [np.flatnonzero(rng.random(n) < q) for _ in range(work.steps or 1)]

    def privatiser(self, like: Params, clients: np.ndarray, server_round: int) -> Privatiser:
        size = sum(t.numel() for t in like.values())
        return _Privatiser(self.part, self.seed, size, clients, server_round)


class _Privatiser(Privatiser):
    denominator = 8.0

    def __init__(
        self, part: Examples, seed: int, size: int, clients: np.ndarray, server_round: int
    ) -> None:
        self.std, self.size = part.factor * part.noise_multiplier * CLIP, size
        self.rngs = [seeds.torch_rng(seed, server_round, int(c), "toy-noise") for c in clients]

    def weights(self, square_norms: Mapping[str, Tensor], true_AB: Tensor) -> Tensor:
        norms_AB = torch.stack(list(square_norms.values())).sum(0).sqrt()
        return (CLIP / (norms_AB + 1e-12)).clamp(max=1) * true_AB

    def noise(self, active: int) -> Tensor:
        rows = [torch.randn(self.size, generator=rng) for rng in self.rngs[:active]]
        return self.std * torch.stack(rows)
