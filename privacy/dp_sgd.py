"""DP-SGD on every client, at the level of examples (Abadi et al. 2016, arXiv:1607.00133, Alg. 1).

    batch  B ← every sample of the client by a coin of its own, with chance q  (Poisson)
    S      ← Σ_{b∈B} w_b g_b,    w_b = min(1, C / ‖g_b‖)
    g      ← (S + zC·N(0, I)) / m,     m public
    then the client's own step: momentum, decay, a proximal term, a correction are post-processing

Claim: each client's whole training is (ε, δ)-DP for its own examples. Clients hold disjoint data,
so a run costs what the client costs that takes part most; the server, other clients and whoever
sees the model see nothing else of an example. Nobody is trusted but the client itself.

Sensitivity. Adding or removing example x changes Σ by w_x g_x alone, for the coins, the gradients
and the weights of the others do not depend on x (`privacy.independence` tries that on the run's
model), and ‖w_x g_x‖ ≤ C. Replacing x changes it by at most 2C; the accountant takes the relation
into account. q and m are public numbers of the scenario; how many samples a client holds is used
for nothing that leaves it: not for the batches' number, the denominator, the reply's weight.

clipping:  flat        as above
           per_layer   each of L tensors to C/√L: Σ over tensors ≤ C again
           automatic   w_b = C / (‖g_b‖ + 0.01) (AUTO-S; Bu et al. 2023, arXiv:2206.07136)
           adaptive    C follows a quantile of the norms within a round (Andrew et al. 2021,
                       arXiv:1905.03871): a noisy count is released beside S, and S is noised with
                       z_Δ > z so that both together cost z; it starts from `clip_norm` each round

Differs from the paper: a fixed denominator m, not the batch's own size; several steps per round,
then the server's aggregation. Noise is drawn by us, not by Opacus, so that a round can be repeated
in simulation, and comes from the operating system's generator on real devices.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.client.gradient import BatchGradient, GradientEstimator, Privatiser
from fedsim.client.half import Batch, ClientContext
from fedsim.client.runtime import ClientRuntime
from fedsim.client.work import LocalSGD
from fedsim.errors import ConfigError
from fedsim.participation.sampling import Poisson
from fedsim.parts import Range
from fedsim.protection import PrivacyPart, Setting, Statement
from fedsim.protection.statement import Relation
from fedsim.records import Params
from privacy.accountant import calibrate
from privacy.accounted import Accounted, is_fresh, most_rounds
from privacy.clipping import update_multiplier
from privacy.events import Event, Gaussian
from privacy.independence import check_independence
from privacy.normal import KEYED_STATEMENT, SYSTEM_STATEMENT, NoiseSource, keyed, system

if TYPE_CHECKING:
    from privacy.per_sample import Method, PerSample

log = logging.getLogger(__name__)

EPS = 1e-6
"""Opacus' constant in C / (‖g‖ + EPS); it can only clip more."""

Clipping = Literal["flat", "per_layer", "automatic", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class DPSGD(PrivacyPart):
    """DP-SGD on each client.

    `noise_multiplier` or `epsilon` must be set; with both, the run ends before the round that would
    cross `epsilon`.

    Attributes:
        epsilon: For the whole run; noise is solved for it where `noise_multiplier` is null.
        delta: Of (ε, δ); below 1 over the number of a client's examples.
        noise_multiplier: z, the noise's standard deviation over C.
        clip_norm: C.
        clipping: See this file's header.
        sample_rate: q, the chance of each sample to be in a batch; public. A round has
            `client.steps` steps, or `client.epochs` / q. The denominator m is `client.batch_size`.
        relation: Neighbouring data sets: one example more or less, or one replaced.
        method: How per-sample gradients are had where clients train one by one.
        physical_batch_size: How many samples are in memory at once there; null for the whole batch.
        noise_source: `keyed` (repeatable), `system` (the operating system's generator), or `auto`:
            keyed in simulation, system on real devices.
        target_quantile: With `adaptive`: the share of samples that are to be within C.
        clip_lr: With `adaptive`: how fast C moves.
        count_noise: With `adaptive`: standard deviation of the noise on the count; null for
            `client.batch_size` / 20, as the paper has it for clients, but at least z.
    """

    hides_sizes = True
    releases_on_client = True

    epsilon: Annotated[float, Range(gt=0)] | None = None
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Range(ge=0)] | None = None
    clip_norm: Annotated[float, Range(gt=0)] = 1.0
    clipping: Clipping = "flat"
    sample_rate: Annotated[float, Range(gt=0, le=1)] = 0.05
    relation: Relation = "add_remove"
    method: Literal["auto", "ghost", "hooks", "functorch"] = "auto"
    physical_batch_size: Annotated[int, Range(ge=1)] | None = None
    noise_source: Literal["auto", "keyed", "system"] = "auto"
    target_quantile: Annotated[float, Range(gt=0, lt=1)] = 0.5
    clip_lr: Annotated[float, Range(gt=0)] = 0.2
    count_noise: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is None and self.noise_multiplier is None:
            raise ConfigError(
                "epsilon: null, and noise_multiplier is null too; set one of them, e.g. "
                "privacy.epsilon=4 or privacy.noise_multiplier=1"
            )
        if self.clipping == "per_layer" and self.method == "ghost":
            raise ConfigError(
                "method: ghost clipping has one weight per sample for all layers; use "
                "privacy.method=hooks with clipping=per_layer"
            )

    def bind(self, setting: Setting) -> Accounted:
        """See `PrivacyPart.bind`."""
        steps = local_steps(setting.work, self.sample_rate)
        rounds = most_rounds(setting)
        sampling = Poisson(rate=self.sample_rate)

        def events(noise: float) -> list[Event]:
            return [
                Event(mechanism=Gaussian(noise_multiplier=noise), sampling=sampling, count=steps)
            ]

        noise = self.noise_multiplier
        if noise is None:
            noise = calibrate(
                lambda z: [event.times(rounds) for event in events(z)],
                epsilon=self.epsilon or math.inf,
                delta=self.delta,
                relation=self.relation,
            )
        fresh = is_fresh(self.noise_source, deployed=setting.deployed)
        estimator = DPSGDEstimator(
            part=replace(self, noise_multiplier=noise), steps=steps, seed=setting.seed, fresh=fresh
        )
        return _DPSGDProtection(
            estimator,
            events=events(noise),
            planned=rounds,
            setting=setting,
            part=self,
        )


class _DPSGDProtection(Accounted):
    def __init__(
        self,
        estimator: DPSGDEstimator,
        *,
        events: Sequence[Event],
        planned: int,
        setting: Setting,
        part: DPSGD,
    ) -> None:
        noise = estimator.part.noise_multiplier
        claim = Statement(
            mechanism=f"DP-SGD on each client ({part.clipping} clipping to {part.clip_norm:g}, "
            f"noise multiplier {noise:.4g})",
            delta=part.delta,
            unit="example",
            relation=part.relation,
            trust="none but each client itself; the server and all others see only noisy updates",
            noise=SYSTEM_STATEMENT if estimator.fresh else KEYED_STATEMENT,
            notes=("Scores of clients on their own held-out samples are not covered",),
        )
        super().__init__(
            claim=claim,
            sampling=f"{Poisson(rate=part.sample_rate)} of a client's examples in each of "
            f"{estimator.steps} steps a round",
            events=events,
            setting=setting,
            planned=planned,
            budget=part.epsilon,
            per_client=True,
            population=round(setting.work.batch_size / part.sample_rate),
        )
        self._estimator = estimator

    @property
    def estimator(self) -> GradientEstimator:
        return self._estimator

    @property
    def public_examples(self) -> float:
        """The number of samples that the scenario says clients hold: m / q, in public."""
        return self._estimator.denominator / self._estimator.part.sample_rate

    @property
    def replays(self) -> bool:
        return not self._estimator.fresh


def local_steps(work: LocalSGD, sample_rate: float) -> int:
    """Return how many steps a client takes per round, whatever it holds."""
    if work.steps is not None:
        return work.steps
    return math.ceil((work.epochs or 0) / sample_rate - 1e-9)


class DPSGDEstimator(GradientEstimator):
    """Per-sample clipping and noise, for one client or for many.

    Args:
        part: The settings, with the noise that was solved for.
        steps: Of one client's round.
        seed: Of keyed noise.
        fresh: Whether noise is the operating system's.
    """

    def __init__(self, *, part: DPSGD, steps: int, seed: int, fresh: bool) -> None:
        self.part, self.steps, self.seed, self.fresh = part, steps, seed, fresh
        self.denominator = math.nan
        self._made: tuple[PerSample, Method, str] | None = None

    def estimate(
        self, loss: Callable[[Params, Batch], Tensor], params: Params, batch: Batch
    ) -> tuple[Params, Tensor]:
        raise TypeError("a loss of a whole batch cannot be made private; see begin")

    def batches(
        self, work: LocalSGD, seed: int, server_round: int, client: int, n: int
    ) -> list[np.ndarray]:
        """Draw batches by one coin per sample and step; an empty one is a step like others."""
        rate = self.part.sample_rate
        if self.fresh:  # the coins must be as secret as the noise
            words, limit = system().words, rate * 2.0**64
            return [np.flatnonzero(words(n) < limit) for _ in range(self.steps)]
        rng = seeds.rng(seed, server_round, client, "batches")
        return [np.flatnonzero(rng.random(n) < rate) for _ in range(self.steps)]

    def check(self, runtime: ClientRuntime) -> None:
        self.denominator = float(runtime.work.batch_size)
        if self.part.clipping == "adaptive":  # said now, and not in the first round
            noise = self.part.noise_multiplier or 0.0
            update_multiplier(noise, self.part.count_noise or max(self.denominator / 20, noise))
        if self.part.physical_batch_size is not None and runtime.drops:
            raise ConfigError(
                "privacy.physical_batch_size: the model has dropout, whose masks are drawn for a "
                "whole batch; set privacy.physical_batch_size=null, or a model without dropout"
            )
        if not runtime.half.overrides("loss"):
            check_independence(runtime)

    def check_alone(self, runtime: ClientRuntime) -> None:
        self.method(runtime)

    def begin(self, runtime: ClientRuntime, *, server_round: int, client: int) -> BatchGradient:
        per_sample, _, _ = self.method(runtime)
        like = {
            name: t for name, t in runtime.initial_params().items() if name in runtime.trainable
        }
        privatiser = self.privatiser(like, np.array([client]), server_round)
        physical = self.part.physical_batch_size

        def gradient(
            params: Params,
            batch: Batch,
            context: ClientContext,
            dropout: Sequence[torch.Generator],
        ) -> tuple[Params, Tensor]:
            sums = {name: torch.zeros_like(params[name]) for name in runtime.trainable}
            total = next(iter(sums.values())).new_zeros(())
            for start in range(0, len(batch.y), physical or max(1, len(batch.y))):
                piece = slice(start, start + (physical or len(batch.y)))
                some = Batch(x=batch.x[piece], y=batch.y[piece])
                true = torch.ones(1, len(some.y), dtype=torch.bool, device=some.y.device)

                def weights(square_norms: Params, true: Tensor = true) -> Tensor | Params:
                    return privatiser.weights(square_norms, true)

                clipped, losses_B = per_sample.weighted_sum(params, some, context, weights, dropout)
                for name, tensor in clipped.items():
                    sums[name].add_(tensor)
                total = total + losses_B.sum()
            (noise_P,) = privatiser.noise(1)
            parts = torch.split(noise_P, [tensor.numel() for tensor in sums.values()])
            for tensor, part in zip(sums.values(), parts, strict=True):
                tensor.add_(part.view(tensor.shape)).div_(privatiser.denominator)
            return sums, total / max(1, len(batch.y))

        return gradient

    def method(self, runtime: ClientRuntime) -> tuple[PerSample, Method, str]:
        """Return how per-sample gradients are had, its name, why not a better way; said once."""
        from privacy.per_sample import choose  # Opacus takes 2 s to import

        if self._made is None or self._made[0].runtime is not runtime:
            flat = self.part.clipping != "per_layer"
            self._made = choose(runtime, self.part.method, flat=flat)
            _, name, why = self._made
            log.info("per-sample gradients by %s%s", name, f" ({why})" if why else "")
        return self._made

    def privatiser(self, like: Params, clients: np.ndarray, server_round: int) -> ClipAndNoise:
        sources = [
            system() if self.fresh else keyed(self.seed, server_round, int(client), "dp-sgd")
            for client in clients
        ]
        return ClipAndNoise(self.part, like, sources, self.denominator)


class ClipAndNoise(Privatiser):
    """Clipping factors and noise of K clients in one round; see this file's header.

    Args:
        part: The settings, with a noise multiplier.
        like: The trainable tensors of one client.
        sources: Where each client's noise comes from.
        denominator: m.
    """

    def __init__(
        self, part: DPSGD, like: Params, sources: Sequence[NoiseSource], denominator: float
    ) -> None:
        self.part, self.sources, self.denominator = part, sources, denominator
        self.names = list(like)
        first = next(iter(like.values()))
        self.size = sum(tensor.numel() for tensor in like.values())
        self.dtype, self.device = first.dtype, first.device
        self.noise_multiplier = part.noise_multiplier or 0.0
        self.clip_K = torch.full((len(sources),), part.clip_norm, dtype=self.dtype)
        self.clip_K = self.clip_K.to(self.device)
        self.count_noise = part.count_noise or max(denominator / 20, self.noise_multiplier)
        if part.clipping == "adaptive":
            self.noise_multiplier = update_multiplier(self.noise_multiplier, self.count_noise)
        self.within_K = torch.zeros_like(self.clip_K)
        self.seen_K = torch.zeros_like(self.clip_K)

    def weights(self, square_norms: Mapping[str, Tensor], true_AB: Tensor) -> Tensor | Params:
        """Return what each sample's gradient is multiplied by."""
        clip_A1 = self.clip_K[: len(true_AB)].unsqueeze(1)
        if self.part.clipping == "per_layer":
            share = 1 / math.sqrt(len(self.names))
            return {
                name: _factor(clip_A1 * share, square_norms[name].sqrt(), true_AB)
                for name in self.names
            }
        norms_AB = torch.stack([square_norms[name] for name in self.names]).sum(0).sqrt()
        if self.part.clipping == "automatic":
            weights = torch.where(torch.isfinite(norms_AB), clip_A1 / (norms_AB + 0.01), 0)
            return torch.where(true_AB, weights, 0)
        if self.part.clipping == "adaptive":
            self.within_K[: len(true_AB)] += ((norms_AB <= clip_A1) & true_AB).sum(1)
            self.seen_K[: len(true_AB)] += true_AB.sum(1)
        return _factor(clip_A1, norms_AB, true_AB)

    def noise(self, active: int) -> Iterator[Tensor]:
        """Yield each client's noise of this step, `[P]`; then C moves, where it does."""
        for clip, source in zip(self.clip_K[:active].tolist(), self.sources, strict=False):
            std = self.noise_multiplier * clip
            if std:
                noise_P = source.normal(self.size, dtype=self.dtype).mul_(std)
            else:
                noise_P = torch.zeros(self.size, dtype=self.dtype)
            yield noise_P.to(self.device)
        if self.part.clipping == "adaptive":
            self._move_clip()

    def _move_clip(self) -> None:
        """Move C towards the quantile, by a noisy count of the step that has ended."""
        drawn = [float(source.normal(1, dtype=self.dtype)) for source in self.sources]
        noise_K = torch.tensor(drawn, dtype=self.dtype, device=self.device)
        noise_K *= self.count_noise if self.noise_multiplier else 0.0
        shifted_K = self.within_K - 0.5 * self.seen_K
        fraction_K = 0.5 + (shifted_K + noise_K) / self.denominator
        self.clip_K *= torch.exp(-self.part.clip_lr * (fraction_K - self.part.target_quantile))
        self.within_K.zero_()
        self.seen_K.zero_()


def _factor(clip_A1: Tensor, norms_AB: Tensor, true_AB: Tensor) -> Tensor:
    factors = (clip_A1 / (norms_AB + EPS)).clamp(max=1.0)
    return torch.where(true_AB & torch.isfinite(norms_AB), factors, 0)
