"""Random features: kernels, the optimum of their number, the noise laws, error over n."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

from fedsim.errors import ConfigError
from privacy.normal import keyed
from privacy.similarity.base import real
from privacy.similarity.exact import kernel_sums
from privacy.similarity.gaussian_process import GaussianProcess
from privacy.similarity.noise import Noise, noise_for
from privacy.similarity.planning import (
    feature_count,
    laplace_cost,
    predicted_error,
    projection_size,
)
from privacy.similarity.projection import Projected
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.spectra import quadrature
from tests.privacy.similarity._all import KERNELS, RATIONAL, noiseless


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = points(60, 3), points(25, 3, 1)


def test_brute_force_is_another_librarys() -> None:
    x, y = X.numpy(), Y.numpy()
    two, one = cdist(y, x), cdist(y, x, "cityblock")
    expected = {
        "gaussian": rbf_kernel(y, x, gamma=1 / 0.7**2),
        "laplace": laplacian_kernel(y, x, gamma=1 / 0.7),
        "exponential": np.exp(-two / 0.7),
        "rational_l2": 1 / (1 + two / 0.7),
        "rational_l2_squared": 1 / (1 + two**2 / 0.49),
        "rational_l1": 1 / (1 + one / 0.7),
    }
    assert set(expected) == set(KERNELS)
    for kernel, value in expected.items():
        found = kernel_sums(X, Y, kernel, 0.7)  # type: ignore[arg-type]
        assert found.numpy() == pytest.approx(value.sum(1), rel=1e-12)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_features_make_the_kernel(kernel: str, pairs: bool) -> None:
    """Single pairs of points, so that nothing averages: within 3 √(3/I), mixtures as others."""
    count = 20_000
    summary = RandomFeatures(
        dimension=3, kernel=kernel, bandwidth=1.5, count=count, pairs=pairs, seed=1
    )
    for x in X[:4]:
        error = noiseless(summary, x[None], Y) - kernel_sums(x[None], Y, kernel, 1.5)
        assert float(error.abs().max()) < 3 * math.sqrt(3 / count)
    itself = noiseless(summary, X[:1], X[:1])
    assert float(itself) == pytest.approx(1.0, abs=1e-4 if pairs else 0.03)


@pytest.mark.parametrize("kernel", RATIONAL)
def test_a_quadrature_answers_as_a_mixture_does(kernel: str) -> None:
    summary = RandomFeatures(dimension=3, kernel=kernel, count=20_000, terms=27, seed=1)
    error = noiseless(summary, X[:1], Y) - kernel_sums(X[:1], Y, kernel, 1.0)
    assert float(error.abs().max()) < 3 * math.sqrt(3 / 20_000)


@pytest.mark.parametrize(("terms", "error"), [(19, 1e-3), (27, 2.1e-5), (37, 9e-7)])
def test_the_quadratures_error(terms: int, error: float) -> None:
    s, weights = quadrature(terms)
    z = np.concatenate([[0.0], np.logspace(-3, 5, 400)])
    found = np.abs(np.exp(-np.outer(z, s)) @ weights - 1 / (1 + z)).max()
    assert error / 2 < found < error
    assert weights.sum() == pytest.approx(1.0, abs=1e-15)


def test_features_of_johnson_and_lindenstrauss() -> None:
    """What it does to the kernel is what it does to the distances."""
    x, y = points(50, 40) / 6, points(10, 40, 1) / 6
    inner = RandomFeatures(dimension=projection_size(0.1), count=4000)
    answer = noiseless(Projected(dimension=40, inner=inner), x, y)
    truth = kernel_sums(x, y, "gaussian", 1.0)
    assert float((answer / truth - 1).abs().mean()) < 0.15
    assert Projected(dimension=40, inner=inner).exact(x, y).tolist() == truth.tolist()


# --- noise ---------------------------------------------------------------------------------------

SCATTERED, ASKED = points(2000, 3, 4), points(60, 3, 5)
TRUTH = kernel_sums(SCATTERED, ASKED, "gaussian", 1.5) / 2000


def error(count: int, law: str, n: int = 2000, pairs: bool = False, seeds: int = 4) -> float:
    """Root mean squared error of a mean at ε = 0.5, add/remove."""
    found = []
    for seed in range(seeds):
        summary = RandomFeatures(dimension=3, bandwidth=1.5, count=count, pairs=pairs, seed=seed)
        noise = noise_for(summary, law, epsilon=0.5, delta=1e-6, relation="add_remove")  # type: ignore[arg-type]
        sums = summary.sums(SCATTERED[:n]) + noise.draw(summary, keyed(seed, 1, 0, "test"))
        truth = TRUTH if n == 2000 else summary.exact(SCATTERED[:n], ASKED) / n
        prepared = summary.prepare(real(sums), n)
        found.append((summary.mean(prepared, ASKED) - truth).square().mean())
    return math.sqrt(float(torch.stack(found).mean()))


def plain_variance(pairs: bool) -> float:
    """v: that of one feature's answer."""
    summary = RandomFeatures(dimension=3, bandwidth=1.5, count=4000, pairs=pairs)
    prepared = summary.prepare(real(summary.sums(SCATTERED)), 2000)
    return float((summary.apart(prepared, ASKED, 0.0) / 2000).square().mean()) * 4000


@pytest.mark.parametrize("pairs", [False, True])
def test_laplace_noise_has_its_optimum_where_planned(pairs: bool) -> None:
    v = plain_variance(pairs)
    plan = {"records": 2000, "law": "laplace", "epsilon": 0.5, "delta": 0.0,
            "relation": "add_remove", "pairs": pairs, "variance": v}  # fmt: skip
    best = feature_count(**plan)  # type: ignore[arg-type]
    assert best == pytest.approx(0.5 * 2000 * math.sqrt(v / (2 if pairs else 4)), abs=2)
    tried = {count: error(count, "laplace", pairs=pairs) for count in
             (_even(best / 9), best, _even(best * 9))}  # fmt: skip
    assert min(tried.values()) == tried[best]
    for count, found in tried.items():
        assert found == pytest.approx(predicted_error(count, **plan), rel=0.35)  # type: ignore[arg-type]
        assert tried[best] < 0.75 * found or count == best


def _even(count: float) -> int:
    return 2 * round(count / 2)


def test_gaussian_noise_does_not_depend_on_the_number() -> None:
    summaries = [RandomFeatures(dimension=3, count=count) for count in (100, 400, 1600)]
    found = []
    for summary in summaries:
        noise = noise_for(summary, "gaussian", epsilon=1.0, delta=1e-6, relation="replace_one")
        drawn = [
            summary.answer({"sums": real(noise.draw(summary, keyed(0, 1, k, "test")))}, ASKED)
            for k in range(20)
        ]
        found.append(float(torch.stack(drawn).std()))
    assert found == pytest.approx([found[0]] * 3, rel=0.12)
    # The deviation of events, z C with C = √I, on (1/I) Σ S_i φ_i(y): z.
    z = noise.scale / math.sqrt(1600)
    assert found[2] == pytest.approx(z, rel=0.12)


def test_pairs_need_less_noise() -> None:
    for law, gain in (("laplace", math.sqrt(2)), ("gaussian", math.sqrt(2))):
        phases, pairs = (
            noise_for(RandomFeatures(dimension=2, count=50, pairs=pairs), law, epsilon=1.0,
                      delta=1e-6, relation="replace_one").scale
            for pairs in (False, True)
        )  # fmt: skip
        assert phases / pairs == pytest.approx(gain)
    costs = {(p, r): laplace_cost(pairs=p, relation=r) for p in (True, False)
             for r in ("add_remove", "replace_one")}  # fmt: skip
    assert costs == {(True, "add_remove"): 2, (True, "replace_one"): 8,
                     (False, "add_remove"): 4, (False, "replace_one"): 16}  # fmt: skip


def test_error_falls_as_the_square_root_of_n() -> None:
    sizes = (125, 500, 2000)
    counts = [_even(n / 14) for n in sizes]  # I ∝ εn
    found = [error(count, "laplace", n, seeds=24) for n, count in zip(sizes, counts, strict=True)]
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert abs(slope + 0.5) < 0.1, slope


def test_a_target_is_met_or_refused() -> None:
    plan = {"records": 20_000, "epsilon": 1.0, "delta": 1e-6, "relation": "replace_one"}
    for law in ("laplace", "gaussian"):
        count = feature_count(law=law, target=0.02, **plan)  # type: ignore[arg-type]
        assert predicted_error(count, law=law, **plan) == pytest.approx(0.02, rel=0.02)  # type: ignore[arg-type]
        assert count < feature_count(law=law, **plan)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="the least error for 20000 records"):
            feature_count(law=law, target=1e-4, **plan)  # type: ignore[arg-type]


def test_estimated_errors_cover_the_truth() -> None:
    """Features' scatter and noise: 95 % of answers within two standard errors, about."""
    within = []
    for seed in range(6):
        summary = RandomFeatures(dimension=3, bandwidth=1.5, count=300, seed=seed)
        noise = Noise(law="gaussian", scale=225.0)
        sums = summary.sums(SCATTERED) + noise.draw(summary, keyed(seed, 1, 0, "test"))
        prepared = summary.prepare(real(sums), 2000)
        parts = summary.errors(prepared, ASKED, noise.deviation)
        total = (parts[0].square() + parts[1].square()).sqrt()
        within.append(((summary.mean(prepared, ASKED) - TRUTH).abs() < 2 * total).double().mean())
    assert 0.85 < float(torch.stack(within).mean()) < 1.0


# --- the Gaussian process ------------------------------------------------------------------------


def test_the_process_is_as_alike_as_its_points() -> None:
    ask = torch.tensor([[0.0], [0.05], [3.0]], dtype=torch.float64)
    process = GaussianProcess(dimension=1, points=ask.tolist())
    noise = Noise(law="gaussian", scale=2.0)
    drawn = torch.stack([real(noise.draw(process, keyed(0, 1, k, "test"))) for k in range(2000)], 1)
    correlation = torch.corrcoef(drawn)
    expected = torch.exp(-torch.cdist(ask, ask).square())
    assert torch.allclose(correlation, expected, atol=0.07)
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.05)


def test_a_repeated_query_is_the_stored_answer_and_others_are_refused() -> None:
    ask = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    process = GaussianProcess(dimension=2, points=ask.tolist())
    noise = Noise(law="gaussian", scale=2.0)
    sums = process.sums(torch.rand(9, 2)) + noise.draw(process, keyed(0, 1, 0, "test"))
    prepared = process.prepare(real(sums), 9)
    again = process.answer(prepared, ask[[1, 0, 1, 1]])
    assert len(set(again[[0, 2, 3]].tolist())) == 1
    with pytest.raises(ConfigError, match="query 1 is none of the 2 points"):
        process.answer(prepared, torch.tensor([[0.0, 1.0], [0.5, 0.4]], dtype=torch.float64))
    # Half the sensitivity of random features against replacing one, to a factor √2.
    features = RandomFeatures(dimension=2, count=100)
    assert features.l2("replace_one") / 10 / process.l2("replace_one") == pytest.approx(
        math.sqrt(2), rel=1e-4
    )
