"""How often each client takes part: the rate models behind Bernoulli, Markov and cyclic schedules.

    homogeneous        p_n = rate
    unequal            p_n = min_rate * (max_rate / min_rate)^((π(n) + 1/2) / N),  π a permutation
    label_correlated   p_n = max(min_rate, rate * C * <h_n, kappa>),  kappa ~ Dir(alpha * 1_C)
                       (FedAU, arXiv:2306.03401; h_n are client n's label shares)
    label_adversarial  p_n = min_rate + (max_rate - min_rate) * (smallest label of n) / (C - 1)
                       (MIFA, arXiv:2106.04159)

A further model is one function here, an entry in `_MODELS` and a word in `RateModel`.

Shape suffixes: N clients, C classes.

Differs from the papers: rates are capped at `max_rate` (FedAU's code has no cap, and its rates can
pass 1 where `rate * C > 1`); a client without samples gets `min_rate`; MIFA divides by 9, the C - 1
of its ten classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from fedsim import seeds
from fedsim.errors import ConfigError
from fedsim.participation.base import ParticipationPart, Population
from fedsim.parts import Range

RateModel = Literal["homogeneous", "unequal", "label_correlated", "label_adversarial"]


@dataclass(frozen=True, kw_only=True)
class RatedPart(ParticipationPart):
    """Base of the participation models in which every client has a rate of its own.

    Attributes:
        rates: The rate model.
        rate: Share of the rounds in which a client takes part: every client's with `homogeneous`,
            the mean over clients (before floor and cap) with `label_correlated`.
        alpha: Concentration of kappa, of `label_correlated`: small makes a few classes decide.
        min_rate: Smallest rate, of all but `homogeneous`.
        max_rate: Largest rate, of the same three.
    """

    rates: RateModel = "homogeneous"
    rate: Annotated[float, Range(gt=0, le=1)] = 0.1
    alpha: Annotated[float, Range(ge=1e-6, le=1e6)] = 0.1
    min_rate: Annotated[float, Range(gt=0, le=1)] = 0.02
    max_rate: Annotated[float, Range(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_rate > self.max_rate:
            raise ConfigError(
                f"min_rate: {self.min_rate} is above max_rate, {self.max_rate}; raise"
                " participation.max_rate or lower participation.min_rate"
            )

    def client_rates(self, population: Population) -> np.ndarray:
        """Return p, each client's rate, float64 `[N]`, in (0, 1].

        Equal rates come as a read-only view of one number, so 10^7 clients cost no memory.
        """
        return _MODELS[self.rates](self, population)


def _homogeneous(part: RatedPart, population: Population) -> np.ndarray:
    return np.broadcast_to(np.float64(part.rate), (population.num_clients,))


def _unequal(part: RatedPart, population: Population) -> np.ndarray:
    count = population.num_clients
    rng = seeds.rng(population.seed, 0, seeds.SERVER, "participation-rates")
    height_N = (rng.permutation(count) + 0.5) / count
    rate_N: np.ndarray = part.min_rate * (part.max_rate / part.min_rate) ** height_N
    return rate_N


def _label_correlated(part: RatedPart, population: Population) -> np.ndarray:
    histogram_NC = population.label_histogram()
    num_classes = histogram_NC.shape[1]
    share_NC = histogram_NC / np.maximum(histogram_NC.sum(axis=1, keepdims=True), 1)
    rng = seeds.rng(population.seed, 0, seeds.SERVER, "participation-rates")
    kappa_C = rng.dirichlet(np.full(num_classes, part.alpha))
    rate_N: np.ndarray = part.rate * num_classes * (share_NC @ kappa_C)
    return rate_N.clip(part.min_rate, part.max_rate)


def _label_adversarial(part: RatedPart, population: Population) -> np.ndarray:
    holds_NC = population.label_histogram() > 0
    smallest_N = np.argmax(holds_NC, axis=1)  # 0 for a client that holds nothing
    height_N: np.ndarray = smallest_N / max(holds_NC.shape[1] - 1, 1)
    return part.min_rate + (part.max_rate - part.min_rate) * height_N


_MODELS: dict[RateModel, Callable[[RatedPart, Population], np.ndarray]] = {
    "homogeneous": _homogeneous,
    "unequal": _unequal,
    "label_correlated": _label_correlated,
    "label_adversarial": _label_adversarial,
}
