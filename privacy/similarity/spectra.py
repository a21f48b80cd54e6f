"""Frequencies whose mean cosine is a kernel (Bochner), and mixtures for the rational kernels.

    gaussian     exp(−‖z‖²/σ²)   ω ~ N(0, 2/σ² I)
    exponential  exp(−‖z‖/σ)     ω = g/(σ|h|),  g ~ N(0, I), h ~ N(0, 1): multivariate Cauchy
    laplace      exp(−‖z‖₁/σ)    ω_d iid Cauchy of scale 1/σ
    1/(1 + z) = ∫ e^{−s} e^{−s z} ds: the frequencies of e^{−s z} are those of e^{−z}, times s
                (times √s where z is the square)

    mixture      s ~ Exp(1) for each frequency: unbiased over the draw, every weight is 1
    quadrature   s = e^u on an even grid of u in [−14, 4.5], weights ∝ s e^{−s}; frequencies are
                 dealt to the nodes in proportion to their weights, which answers put right

Shapes: D inputs, W frequencies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim import seeds
from privacy.similarity.exact import Kernel

Floats = NDArray[np.float64]

BASES: dict[Kernel, Kernel] = {
    "rational_l2": "exponential",
    "rational_l2_squared": "gaussian",
    "rational_l1": "laplace",
}
QUADRATURE_RANGE = (-14.0, 4.5)


def quadrature(terms: int) -> tuple[Floats, Floats]:
    """Return nodes s and weights, which sum to 1: 1/(1 + z) ≈ Σ w e^{−s z} for all z ≥ 0.

    The largest error is 1e-3 with 19 terms, 2e-5 with 27, 8e-7 with 37.
    """
    s = np.exp(np.linspace(*QUADRATURE_RANGE, terms))
    weights = s * np.exp(-s)
    return s, weights / weights.sum()


def frequencies(
    kernel: Kernel, *, dimension: int, count: int, bandwidth: float, seed: int, terms: int
) -> tuple[Floats, Floats]:
    """Return W frequencies, `[D, W]`, and the weight of each in an answer, `[W]`, of mean 1.

    Args:
        kernel: Which.
        dimension: D.
        count: W.
        bandwidth: σ.
        seed: Public.
        terms: Of the quadrature; 0 for the mixture.
    """
    rng = seeds.rng(seed, 0, seeds.SERVER, "similarity-frequencies")
    base = BASES.get(kernel, kernel)
    if base == "gaussian":
        omega_DW = rng.standard_normal((dimension, count)) * np.sqrt(2)
    elif base == "exponential":
        omega_DW = rng.standard_normal((dimension, count)) / np.abs(rng.standard_normal(count))
    else:
        omega_DW = rng.standard_cauchy((dimension, count))
    weight_W = np.ones(count)
    if base != kernel:
        scale_W = rng.exponential(size=count)
        if terms:
            scale_W, weight_W = dealt(terms, count)
        omega_DW *= np.sqrt(scale_W) if base == "gaussian" else scale_W
    return omega_DW / bandwidth, weight_W


def dealt(terms: int, count: int) -> tuple[Floats, Floats]:
    """Return the quadrature node of each of W frequencies, and its weight in an answer.

    Every node has one frequency at least, as long as there are enough; nodes of least weight go
    first where there are not.
    """
    s, weights = quadrature(terms)
    kept = np.sort(np.argsort(-weights, kind="stable")[:count])
    s, weights = s[kept], weights[kept] / weights[kept].sum()
    spare = weights * (count - len(kept))
    counts = 1 + np.floor(spare).astype(np.int64)
    rest = count - int(counts.sum())
    counts[np.argsort(-(spare % 1), kind="stable")[:rest]] += 1
    return np.repeat(s, counts), np.repeat(count * weights / counts, counts)
