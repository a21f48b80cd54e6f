"""Where gradient descent on quadratics ends with the largest number of each update, by theory.

Without feedback a point stays where the mean of what is sent is zero, wherever the mean gradient
points. With feedback x + mean e moves by the mean gradient exactly, whatever the encoding leaves
out: a point can only stay where that is zero.
"""

from itertools import pairwise

import numpy as np
import pytest

from fedsim.compression.qsgd import QSGD
from fedsim.compression.top_k import TopK
from tests.compression._quadratics import ENGINES, quadratics, trace

A = ([-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0])
UNIT = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
BEZNOSIKOV = [[[2 * a for a in row], *UNIT] for row in A], [[0.0] * 4] * 3
"""f_k(x) = ⟨a_k, x⟩² + ‖x‖² / 4, as the mean over four samples; the optimum of all is 0."""

CENTRES = ([3.0, 1.0], [-3.0, 1.0])
TWO = [[[1.0, 0.0], [0.0, 1.0]]] * 2, list(CENTRES)
"""f_k(x) = ‖x − b_k‖² / 2; the optimum of the mean is (0, 1), and not that of either."""

ONE_OF_THREE, ONE_OF_TWO = 1 / 3, 1 / 2


@pytest.mark.parametrize("engine", ["in_process", "wire", "rules"])
def test_the_largest_alone_diverges_as_beznosikov_et_al_compute(engine: str) -> None:
    """arXiv:2002.12410, Example 1: from (1, 1, 1), x ← (1 + 11 γ / 6) x for ever."""
    gamma, rounds = 0.01, 20
    codec = TopK(share=ONE_OF_THREE, error_feedback=False)
    runtime = quadratics(*BEZNOSIKOV, [1.0, 1.0, 1.0], codec, lr=gamma)
    *_, (x, _) = trace(runtime, ENGINES[engine], rounds)
    assert x == pytest.approx([(1 + 11 * gamma / 6) ** rounds] * 3, rel=1e-12)


@pytest.mark.parametrize(("engine", "rounds"), [("in_process", 60), ("rules", 300)])
def test_with_feedback_it_ends_at_the_optimum_as_fast_as_descent(engine: str, rounds: int) -> None:
    """All gradients vanish at 0, and with them what is left out: no distance is left.

    The mean Hessian is Σ_k 2 a_k a_kᵀ / 3 + I / 2. Σ_k a_k a_kᵀ is 17 on the diagonal and −8 beside
    it, and (1, 1, 1) its eigenvector of value 1: descent goes by 1 − γ (2/3 + 1/2) a round.
    """
    gamma = 0.03
    runtime = quadratics(*BEZNOSIKOV, [1.0, 1.0, 1.0], TopK(share=ONE_OF_THREE), lr=gamma)
    found = np.array([x for x, _ in trace(runtime, ENGINES[engine], rounds)])
    descent = np.sqrt(3) * (1 - gamma * (2 / 3 + 1 / 2)) ** np.arange(1, rounds + 1)
    ratio = np.linalg.norm(found, axis=1) / descent
    assert ratio.max() < 1.15
    assert ratio[:50].min() > 0.85
    assert rounds < 300 or descent[-1] < 5e-5


@pytest.mark.parametrize("height", [0.0, -1.5, 3.9])
def test_the_largest_alone_stays_where_what_is_sent_cancels(height: float) -> None:
    """While |y − 1| < 3, both clients send their first number: y stays, and x ← (1 − γ) x."""
    gamma, rounds, start = 0.1, 50, 0.05
    codec = TopK(share=ONE_OF_TWO, error_feedback=False)
    runtime = quadratics(*TWO, [start, height], codec, lr=gamma)
    *_, (x, _) = trace(runtime, ENGINES["rules"], rounds)
    assert x[1] == height, "forever, whatever the optimum"
    assert x[0] == pytest.approx(start * (1 - gamma) ** rounds, rel=1e-9)


@pytest.mark.parametrize("engine", ["in_process", "rules"])
@pytest.mark.parametrize("codec", [TopK(share=ONE_OF_TWO), QSGD(levels=1)], ids=["top_k", "qsgd"])
def test_with_feedback_nothing_is_lost(codec: object, engine: str) -> None:
    """x + mean e is moved by the mean gradient at x, to the last bits; without, it is not."""
    gamma = 0.1
    runtime = quadratics(*TWO, [0.0, 0.0], codec, lr=gamma)  # type: ignore[arg-type]
    path = [(np.zeros(2), np.zeros(2)), *trace(runtime, ENGINES[engine], 40)]
    optimum = np.mean(CENTRES, axis=0)
    gaps = []
    for (x, e), (new_x, new_e) in pairwise(path):
        gaps.append(np.abs((new_x + new_e) - (x + e - gamma * (x - optimum))).max())
    remembers = codec.remembers  # type: ignore[attr-defined]
    assert (max(gaps) < 1e-14) == remembers


def test_with_feedback_it_comes_to_the_optimum_as_steps_shrink() -> None:
    """Where clients' gradients do not vanish, at a constant step up to a distance of order γ.

    What a client remembers is at most as large as what it would rather send: 3γ, give or take what
    x moves. So x is within some 3γ of x + mean e, which descends; halving γ halves the distance.
    """
    rounds, gamma, every = 350, 0.2, 50
    runtime = quadratics(*TWO, [0.0, 0.0], TopK(share=ONE_OF_TWO), lr=gamma, schedule="step",
                         decay=0.5, decay_every=every)  # fmt: skip
    found = [x for x, _ in trace(runtime, ENGINES["rules"], rounds)]
    away = np.linalg.norm(np.array(found) - np.mean(CENTRES, axis=0), axis=1)
    for phase in range(rounds // every):
        late = away[phase * every + every // 2 : (phase + 1) * every]
        assert late.max() <= 2 * 3 * gamma * 0.5**phase, phase
    assert away[-1] < 0.02  # (0, 0), where it would stay without feedback, is at a distance of 1
