"""The risk of linear regression from bag means, in closed form, and the best k and ρ by it.

    θ̂ = argmin (1 − ρ) L_bag + ρ L_ins       x ~ N(0, I_d),  y = x·θ + N(0, σ²),  random bags of k

With m = n/k, and t > 0 the root of

    m t/(1+t) + m(k−1) ρt/(1+ρt) = d,

a = 1/(1+t)², b = 1/(1+ρt)², Q = m a + m(k−1) ρ b and c = m t/(d(1+t)):

    E‖θ̂ − θ‖²  =  ‖θ‖² {(1−c)² + (t/Q) [m a (1−c)² + m(k−1) ρ² b c²]}  +  σ² m a t/Q

(the squared bias, then the variance) for n, d → ∞ at a fixed ratio; at d = 200 a Monte-Carlo run
cannot tell the two apart. ρ = 0 has no bias and the variance σ² kδ/(1 − kδ), δ = d/n, which is
infinite from k = n/d on. ρ = 1 has t = δ/(1−δ): θ̂ shrinks to θ/k.

Proof. Scale bag means by √k: G `[m, d]` has independent N(0, 1) entries, √k ȳ = Gθ + e with
e ~ N(0, σ² I_m), and by Cochran's theorem G is independent of the deviations within bags, whose
scatter B is Wishart with m(k−1) degrees of freedom. n L_int = ‖√k ȳ − Gθ‖² + ρ θ'Bθ + const., so
with A = G'G

    θ̂ = H⁻¹ G'(Gθ + e),     H = A + ρB = Σ_j w_j z_j z_j',

w_j = 1 for m rows and ρ for the other m(k−1), z_j independent N(0, I_d).
(1) Leave row j out: z_j'H⁻¹z_j = s/(1 + w_j s), s = z_j'H₋ⱼ⁻¹z_j, and s concentrates at t = tr H⁻¹.
    Then d = tr H⁻¹H = Σ_j w_j t/(1 + w_j t): the equation of t.
(2) Variance: σ² tr H⁻¹AH⁻¹ = −σ² ∂/∂λ tr (λA + ρB)⁻¹ at λ = 1. Differentiating
    m λt/(1+λt) + m(k−1) ρt/(1+ρt) = d gives ∂t/∂λ = −m a t/Q. In the same way
    tr H⁻¹BH⁻¹ = −∂t/∂ρ = m(k−1) b t/Q.
(3) Bias: rotate θ to ‖θ‖ e₁. H⁻¹A e₁ is the weighted regression of v on all columns, v_j = z_j1 on
    the m rows of A and 0 elsewhere. By Frisch-Waugh its first entry is (Σ w_j r_j v_j) /
    (Σ w_j r_j z_j1) with r the residual of column 1 on the others; the residual maker's diagonal is
    w_j/(1 + w_j t), so that is [m/(1+t)] / [m/(1+t) + m(k−1)ρ/(1+ρt)] = [m/(1+t)] / [d/t] = c.
    The other entries regress u = v − c z_1, independent of those columns: u_j = (1−c) z_j1 on the m
    rows, −c z_j1 elsewhere. Their squared norm is (1−c)² tr H⁻¹AH⁻¹ + c² ρ² tr H⁻¹BH⁻¹, and (2)
    gives the bracket. ∎

Noise of variance v on each bag mean acts as more of σ²: σ² + k v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RHOS = np.concatenate([[0.0], np.logspace(-3, 2, 151)])
"""The ρ among which the best is sought."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The bag size and the ρ of smallest risk.

    Attributes:
        k, rho: Of the smallest risk.
        risk: E‖θ̂ − θ‖² there.
    """

    k: int
    rho: float
    risk: float


def risk(
    *, n: float, d: float, k: int, rho: ArrayLike, variance: float, signal: float = 1.0
) -> NDArray[np.float64]:
    """Return E‖θ̂ − θ‖², of the shape of `rho`; infinite where the problem has no single solution.

    Args:
        n: Samples.
        d: Features; n > d.
        k: Samples in a bag.
        rho: ρ ≥ 0.
        variance: σ² of one response given its inputs, label noise included: σ² + k v.
        signal: ‖θ‖².

    Example:
        >>> float(risk(n=600, d=100, k=2, rho=0.0, variance=1.0).round(4))  # kδ/(1 − kδ)
        0.5
    """
    rho_R = np.atleast_1d(np.asarray(rho, np.float64))
    m, rest = n / k, n - n / k
    out = np.full(rho_R.shape, np.inf)
    solvable = (n > d) & ((rho_R > 0) & (k > 1) | (m > d))
    r = rho_R[solvable]
    t = _root(m, rest, r, d)
    a, b = 1 / (1 + t) ** 2, 1 / (1 + r * t) ** 2
    q, c = m * a + rest * r * b, m * t / (d * (1 + t))
    bias = (1 - c) ** 2 + t / q * (m * a * (1 - c) ** 2 + rest * r**2 * b * c**2)
    out[solvable] = signal * bias + variance * m * a * t / q
    return out.reshape(np.shape(rho))


def best(
    *, n: float, d: float, variance_at: dict[int, float], signal: float = 1.0
) -> dict[int, Advice]:
    """Return the best ρ of each bag size k in `variance_at`, which gives its σ² + k v."""
    advice = {}
    for k, variance in variance_at.items():
        risks = risk(n=n, d=d, k=k, rho=RHOS, variance=variance, signal=signal)
        i = int(risks.argmin())
        advice[k] = Advice(k=k, rho=float(RHOS[i]) if k > 1 else 0.0, risk=float(risks[i]))
    return advice


def _root(m: float, rest: float, rho: NDArray[np.float64], d: float) -> NDArray[np.float64]:
    """Return t, by bisection of its logarithm: the left side increases from 0 to over d."""
    low, high = np.full(rho.shape, -60.0), np.full(rho.shape, 60.0)
    for _ in range(120):
        middle = (low + high) / 2
        t = np.exp(middle)
        less = m * t / (1 + t) + rest * rho * t / (1 + rho * t) < d
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    root: NDArray[np.float64] = np.exp((low + high) / 2)
    return root
