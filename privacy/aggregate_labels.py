"""Label DP by aggregation: bag means are released once, with noise; training is post-processing.

    ȳ_a + Lap(Δ₁/ε)                                              ε-DP for one response
    ȳ_a + N(0, s²),  s = z Δ₂/2                        (ε, δ)-DP, z from the Gaussian's exact curve

after Javanmard et al. (ICLR 2024, arXiv:2401.11081). A bag of s samples; bags are disjoint and do
not depend on responses; inputs, bags and their sizes are public.

Sensitivity. Replacing one response changes the mean of one bag only, the one that it lies in, by
(y' − y)/s. Regression: every *individual* response was clipped to [−C, C] before it was averaged
(clipping the mean would leave 2C), so each of the D columns moves by at most 2C/s: Δ₁ = 2CD/s and
Δ₂ = 2C√D/s. Classes: one share falls by 1/s and another rises by 1/s: Δ₁ = 2/s, Δ₂ = √2/s. Of two
classes only the second's share is released, and the first's is one minus it: Δ₁ = Δ₂ = 1/s. All
other bags' releases are as before, so the ratio of densities is that of one bag. ∎ (Δ is of
replacing; `Gaussian(z)` is an event of contributions of norm Δ₂/2 whose replacement moves a sum by
Δ₂.)

The noise of a bag is drawn once, keyed by its client alone, and is the same in every round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.parts import Range
from fedsim.protection import Line, PrivacyPart, Setting, Statement
from privacy.accountant import calibrate
from privacy.accounted import Accounted, check_one_holder
from privacy.aggregate_risk import Advice, best, risk
from privacy.events import Event, Gaussian, PureDP
from privacy.normal import KEYED_STATEMENT, NoiseSource, keyed

LARGEST_BAG = 64
"""Up to which bag size a recommendation looks."""


@dataclass(frozen=True, kw_only=True)
class AggregateLabels(PrivacyPart):
    """One noisy release of the mean response of each bag.

    Attributes:
        epsilon: Of each response, over the whole run.
        delta: 0: Laplace noise; else Gaussian.
        assumed_noise: σ² of a response given its inputs, and
        assumed_signal: ‖θ‖² of a linear model on inputs of variance 1: what the recommendation of k
            and ρ that `fedsim plan` prints is computed for. Neither is read from the data.
    """

    releases_on_client = True

    epsilon: Annotated[float, Range(gt=0, le=64)] = 1.0
    delta: Annotated[float, Range(ge=0, lt=1)] = 0.0
    assumed_noise: Annotated[float, Range(ge=0)] = 0.5
    assumed_signal: Annotated[float, Range(gt=0)] = 0.5

    def bind(self, setting: Setting) -> AggregateLabelsProtection:
        """See `PrivacyPart.bind`."""
        data = setting.dataset
        if data.bags is None:
            raise ConfigError(
                "privacy=aggregate_labels: there is nothing aggregate to release: data set "
                f"'{data.name}' has a response for each sample; use data=bags, with the data set "
                "as its source, or privacy=label_dp"
            )
        if data.bags.by_response:
            raise ConfigError(
                "privacy=aggregate_labels: bags that depend on the responses (data.assign="
                "responses) tell of them whatever noise their means have; use data.assign=random, "
                "features or group"
            )
        if data.task == "regression" and data.bags.bound is None:
            raise ConfigError(
                "privacy=aggregate_labels: without a bound on each response no noise hides one; "
                "set data.clip, e.g. data.clip=3"
            )
        if setting.deployed:
            raise ConfigError(
                "privacy=aggregate_labels: devices would have to keep their noisy means between "
                "processes, which they do not do yet; use a simulating engine, such as "
                "engine=cohort"
            )
        event = Event(mechanism=PureDP(epsilon=self.epsilon))
        multiplier = gaussian_multiplier(self.epsilon, self.delta) if self.delta else 0.0
        if self.delta:
            event = Event(mechanism=Gaussian(noise_multiplier=multiplier))
        name = "Gaussian" if self.delta else "Laplace"
        bounded = "" if data.bags.bound is None else f"; responses clipped to ±{data.bags.bound:g}"
        claim = Statement(
            mechanism=f"{name} noise on bag means (bags of up to {data.bags.places}{bounded})",
            delta=self.delta,
            unit="label",
            relation="replace_one",
            trust="each client with its own responses; inputs and bags are public",
            noise=KEYED_STATEMENT,
            notes=(
                "A label is one individual response; it lies in one bag",
                "Taken as public: the scale that the data part gave the responses, the columns "
                "that bags and clients go by, and who holds which bags",
                *self._advice(data),
            ),
        )
        return AggregateLabelsProtection(self, claim, setting, event, multiplier)

    def _advice(self, data: Dataset) -> tuple[str, ...]:
        """Return the recommendation in words; none where the closed form says nothing."""
        if data.task != "regression" or data.bags is None or data.num_outputs != 1:
            return ()
        n, d = len(data.train_x) * data.bags.places, math.prod(data.input_shape) + 1
        bound = data.bags.bound or 0.0
        if n <= d:
            return ()
        found = self.recommend(n=n, d=d, bound=bound)
        here = self.recommend(n=n, d=d, bound=bound, sizes=[data.bags.places])
        k, own = data.bags.places, self._variance(data.bags.places, bound)
        zero = float(risk(n=n, d=d, k=k, rho=0.0, variance=own, signal=self.assumed_signal))
        return (
            f"Closed-form risk of a linear model on random bags (n = {n}, d = {d}, "
            f"σ² = {self.assumed_noise:g} and ‖θ‖² = {self.assumed_signal:g} assumed, "
            f"C = {bound:g}, ε = {self.epsilon:g}): smallest, {found.risk:.3g}, at k = {found.k}, "
            f"ρ = {found.rho:.2g}; at this run's k = {here.k}, {here.risk:.3g} at "
            f"ρ = {here.rho:.2g} and {zero:.3g} at ρ = 0",
        )

    def recommend(
        self, *, n: int, d: int, bound: float, sizes: Sequence[int] | None = None
    ) -> Advice:
        """Return the bag size and ρ of smallest closed-form risk for a clip at `bound`."""
        sizes = range(1, min(LARGEST_BAG, n) + 1) if sizes is None else sizes
        found = best(
            n=n,
            d=d,
            variance_at={k: self._variance(k, bound) for k in sizes},
            signal=self.assumed_signal,
        )
        return min(found.values(), key=lambda advice: advice.risk)

    def _variance(self, k: int, bound: float) -> float:
        """Return σ² + k v."""
        if not self.delta:
            return self.assumed_noise + k * 2 * (2 * bound / (k * self.epsilon)) ** 2
        multiplier = gaussian_multiplier(self.epsilon, self.delta)
        return self.assumed_noise + k * (multiplier * bound / k) ** 2


class AggregateLabelsProtection(Accounted):
    """One run of `AggregateLabels`."""

    def __init__(
        self,
        part: AggregateLabels,
        claim: Statement,
        setting: Setting,
        event: Event,
        multiplier: float,
    ) -> None:
        super().__init__(
            claim=claim,
            sampling="each bag's mean is released once, before the first round",
            events=[event],
            setting=setting,
            planned=1,
            budget=None,
            per_client=False,
        )
        self.seed, self.epsilon, self.multiplier = setting.seed, part.epsilon, multiplier
        data = setting.dataset
        self.classes = data.num_outputs if data.task == "classification" else 0
        bound = data.bags.bound if data.bags and data.bags.bound is not None else 0.0
        self.span_l1, self.span_l2 = spans(self.classes, data.num_outputs, bound)

    def check(self, runtime: ClientRuntime) -> None:
        """See `Protection.check`: each bag must be released by one client only."""
        super().check(runtime)
        check_one_holder(runtime, "bags")

    def releases(self, server_round: int, clients: np.ndarray) -> Sequence[Line]:
        """See `Protection.releases`: all bags at once, before the first round."""
        return super().releases(1, clients) if server_round == 0 else ()

    def targets(self, client: int, y: Tensor) -> Tensor:
        """See `Protection.targets`: `[M, num_outputs + 1]`, a bag's mean and its size."""
        mean, size_M1 = y[:, :-1].double().cpu(), y[:, -1:].double().cpu()
        released = mean[:, 1:] if self.classes == 2 else mean
        source = keyed(self.seed, 0, client, "aggregate-labels")
        if self.multiplier:
            unit = source.normal(released.numel(), dtype=torch.float64)
            scale_M1 = self.multiplier * self.span_l2 / 2 / size_M1
        else:
            unit = laplace(source, released.numel())
            scale_M1 = self.span_l1 / self.epsilon / size_M1
        released = released + scale_M1 * unit.view(released.shape)
        if self.classes == 2:
            released = torch.cat([1 - released, released], 1)
        return torch.cat([released, size_M1], 1).to(y.device, y.dtype)


@cache
def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """Return the smallest z that makes one unsampled Gaussian release (epsilon, delta)-DP."""
    return calibrate(
        lambda z: [Event(mechanism=Gaussian(noise_multiplier=z))],
        epsilon=epsilon,
        delta=delta,
        relation="replace_one",
    )


def spans(classes: int, columns: int, bound: float) -> tuple[float, float]:
    """Return (Δ₁ s, Δ₂ s): how far replacing one response moves the sum over its bag.

    Args:
        classes: How many, or 0 for regression.
        columns: Of a response.
        bound: C, for regression.

    Example:
        >>> spans(0, 1, 3.0), spans(2, 2, 0.0)
        ((6.0, 6.0), (1.0, 1.0))
    """
    if not classes:
        return 2 * bound * columns, 2 * bound * math.sqrt(columns)
    return (1.0, 1.0) if classes == 2 else (2.0, math.sqrt(2))


def laplace(source: NoiseSource, size: int) -> Tensor:
    """Return `size` independent Laplace numbers of scale 1, float64.

    The top 53 bits of a word are a uniform in (0, 1), whose negative logarithm is the size; the
    lowest bit is the sign.
    """
    words = source.words(size)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    sign = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)
    return torch.from_numpy(-np.log(uniform) * sign)
