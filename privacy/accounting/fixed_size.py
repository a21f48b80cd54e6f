"""Subsets of fixed size, drawn without replacement: tight, under replacement of one unit.

Balle, Barthe, Gaboardi, "Privacy amplification by subsampling" (arXiv:1807.01647), Theorem 9:
q = m / N, delta_0 the profile of the mechanism without sampling,

    delta(epsilon) = q delta_0(log(1 + (e^epsilon - 1) / q))          epsilon >= 0
    delta(-epsilon) = 1 - e^-epsilon + e^-epsilon delta(epsilon)      replacement is symmetric

The curve is convex in e^epsilon, so it is the profile of a pair of distributions, and that pair
dominates every release; composing the pair bounds the composition (Zhu, Dong, Wang,
arXiv:2106.08567). This costs several times what Poisson sampling at the same rate costs under
add/remove (Lebeda et al., arXiv:2405.20769), which is why a run whose cohorts or batches have a
fixed size must not be accounted as Poisson.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import pld_pmf
from scipy.optimize import brentq

from privacy.accounting.gaussian import gaussian_delta
from privacy.accounting.pure import amplified
from privacy.events import FixedSize, Gaussian, Laplace

TAIL = 1e-22
"""The loss beyond which less than this mass lies counts as infinite (as dp-accounting does)."""


def fixed_size_pmf(mechanism: Gaussian | Laplace, sampling: FixedSize, grid: float) -> Any:
    """Return the discretised loss of one release, pessimistic, under replacement.

    Args:
        mechanism: With noise > 0.
        sampling: The subset.
        grid: Losses are multiples of this.
    """
    rate = sampling.size / sampling.population
    last = math.ceil(amplified(_last_loss(mechanism, TAIL / rate), rate) / grid) + 1
    loss = grid * np.arange(last + 1)
    # log(1 + (e^x - 1) / q); beyond 30 with e^x / q taken out, which would overflow.
    near = np.log1p(np.expm1(np.minimum(loss, 30.0)) / rate)
    far = loss - math.log(rate) + np.log1p((rate - 1) * np.exp(-loss))
    inner = np.where(loss < 30.0, near, far)
    delta = rate * _profile(mechanism, inner)
    return symmetric_pmf(delta, grid)


def symmetric_pmf(delta: npt.NDArray[np.float64], grid: float) -> Any:
    """Connect the dots (arXiv:2207.04380, Algorithm 1) of a symmetric profile.

    The mass at loss x_i = i grid is what bends the curve there. Only x >= 0 is computed from
    `delta`, at epsilon = 0, grid, 2 grid, ...; the mass at -x is e^-x times that at x. From the
    profile at negative epsilon, which is near 1, the masses would come out 1e-12 off each.
    """
    step, growth = np.diff(delta), math.exp(grid)
    mass = np.empty_like(delta)
    mass[0] = 1 + (2 * delta[1] - (1 + growth) * delta[0]) / math.expm1(grid)
    mass[1:-1] = (step[1:] - growth * step[:-1]) / math.expm1(grid)
    mass[-1] = step[-1] / math.expm1(-grid)
    mass = np.maximum(mass, 0.0)
    below = mass[:0:-1] * np.exp(-grid * np.arange(len(mass) - 1, 0, -1))
    whole = np.concatenate([below, mass])
    return pld_pmf.DensePLDPmf(grid, 1 - len(mass), whole, float(delta[-1]), True)


def _profile(mechanism: Gaussian | Laplace, epsilon: npt.NDArray[np.float64]) -> Any:
    """Return delta_0, without sampling, under replacement (sensitivity 2)."""
    if isinstance(mechanism, Gaussian):
        return gaussian_delta(2 / mechanism.noise_multiplier, epsilon)
    return -np.expm1(np.minimum((epsilon - 2 / mechanism.scale) / 2, 0.0))


def _last_loss(mechanism: Gaussian | Laplace, tail: float) -> float:
    if isinstance(mechanism, Laplace):
        return 2 / mechanism.scale
    mu = 2 / mechanism.noise_multiplier
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / min(tail, 0.5)))
    if float(gaussian_delta(mu, 0.0)) <= tail:
        return 0.0
    return float(brentq(lambda e: float(gaussian_delta(mu, e)) - tail, 0.0, high))
