import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.local import (
    GaussianReport,
    LaplaceReport,
    RandomisedResponse,
    gaussian_delta,
    gaussian_sigma,
    laplace,
)
from privacy.normal import keyed, system

Z = 4.417

# Exact composition of T Gaussians of multiplier z is one of z / sqrt(T): (T, z, delta, epsilon).
ORACLES = [
    (1, 1, 1e-5, 4.377178),
    (10, 5, 1e-5, 2.594383),
    (50, 10, 1e-5, 2.943225),
    (100, 4, 1e-5, 13.206712),
    (100, 20, 1e-5, 1.993091),
    (1000, 50, 1e-6, 2.921601),
]


@pytest.mark.parametrize(("count", "z", "delta", "epsilon"), ORACLES)
def test_the_closed_form_has_the_known_digits(
    count: int, z: float, delta: float, epsilon: float
) -> None:
    mu = math.sqrt(count) / z
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-5)
    assert gaussian_sigma(epsilon, delta, 1.0) == pytest.approx(1 / mu, rel=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 1.0, 10.0, 100.0, 2000.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.3, 0.9])
def test_sigma_is_enough_and_hardly_less_would_be(epsilon: float, delta: float) -> None:
    sigma = gaussian_sigma(epsilon, delta, 2.0)
    assert gaussian_delta(2.0 / sigma, epsilon) <= delta
    assert gaussian_delta(2.0 / (sigma * (1 - 1e-6)), epsilon) > delta


def test_dp_accounting_agrees() -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld

    for epsilon, delta in ((0.5, 1e-6), (4.0, 1e-5), (12.0, 1e-4)):
        sigma = gaussian_sigma(epsilon, delta, 2.0)
        loss = pld.from_gaussian_mechanism(sigma, sensitivity=2.0)
        assert loss.get_delta_for_epsilon(epsilon) == pytest.approx(delta, rel=1e-3)


def test_the_classical_formula_and_the_halved_sensitivity_would_be_false() -> None:
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 20
    assert gaussian_delta(1 / classical, 20.0) == pytest.approx(1.5e-3, rel=0.05)
    halved = GaussianReport(clip_norm=1.0, epsilon=1.0, delta=1e-5).sigma / 2
    assert gaussian_delta(2 / halved, 1.0) > 100 * 1e-5


def test_a_report_is_clipped_and_noised() -> None:
    report = GaussianReport(clip_norm=3.0, epsilon=8.0, delta=1e-5)
    assert report.sigma == gaussian_sigma(8.0, 1e-5, 6.0)
    assert report.noise_multiplier == report.sigma / 3.0
    vector_P = torch.full((200_000,), 100.0)
    before_P = vector_P.clone()
    noise_P = keyed(0, 1, 0, "n").normal(200_000) * report.sigma
    out_P = report.privatise(vector_P, keyed(0, 1, 0, "n"))
    assert torch.equal(vector_P, before_P)
    assert float((out_P - noise_P).double().norm()) == pytest.approx(3.0, rel=1e-3)
    broken = report.privatise(torch.tensor([math.nan, 1e9]), keyed(0, 1, 0, "n"))
    torch.testing.assert_close(broken, keyed(0, 1, 0, "n").normal(2) * report.sigma)


def test_laplace_noise_and_its_report() -> None:
    for source in (keyed(0, 1, 0, "laplace"), system()):
        draws = laplace(source, 125_000)
        assert abs(draws.mean()) <= Z * math.sqrt(2 / draws.size)
        assert abs((draws**2).mean() - 2) <= Z * math.sqrt((24 - 4) / draws.size)
        assert stats.kstest(draws, "laplace").pvalue > 1e-5
    report = LaplaceReport(low=-1.0, high=3.0, epsilon=2.0)
    assert report.scale == 2.0
    values = np.array([-50.0, 0.5, 50.0, math.nan, math.inf])
    noise = 2.0 * laplace(keyed(0, 1, 0, "l"), 5)
    expected = np.array([-1.0, 0.5, 3.0, 1.0, 3.0]) + noise
    assert report.privatise(values, keyed(0, 1, 0, "l")) == pytest.approx(expected, rel=1e-15)
    with pytest.raises(ConfigError, match="low < high"):
        LaplaceReport(low=1.0, high=1.0, epsilon=1.0)


@pytest.mark.parametrize("kinds", [2, 3, 10, 1000])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 1.0, 4.0, 16.0])
def test_randomised_response_keeps_its_ratio_exactly(kinds: int, epsilon: float) -> None:
    """Row 17: every output's probability under every pair of labels, as fractions."""
    channel = RandomisedResponse(kinds=kinds, epsilon=epsilon)
    some = range(min(kinds, 10))
    for label in some:
        total = channel.probability(label, label) + (kinds - 1) * channel.probability(
            (label + 1) % kinds, label
        )
        assert total == 1
    ratios = [
        channel.probability(out, label) / channel.probability(out, other)
        for out in some
        for label in some
        for other in some
    ]
    assert max(ratios) <= Fraction(math.exp(epsilon)) * (1 + Fraction(1, 10**9))
    # ... and does not give away much of what it may say.
    assert max(ratios) >= Fraction(math.exp(epsilon)) * (1 - Fraction(1, 10**7))
    p = math.exp(epsilon) / (math.exp(epsilon) + kinds - 1)
    assert float(channel.probability(0, 0)) == pytest.approx(p, rel=1e-12)


def test_randomised_response_draws_what_it_enumerates() -> None:
    channel = RandomisedResponse(kinds=4, epsilon=1.0)
    for label in range(4):
        labels_N = np.full(100_000, label)
        seen = np.bincount(channel.privatise(labels_N, keyed(0, 1, label, "rr")), minlength=4)
        expected = [100_000 * float(channel.probability(out, label)) for out in range(4)]
        assert stats.chisquare(seen, expected).pvalue > 1e-5


def test_frequencies_are_unbiased() -> None:
    channel = RandomisedResponse(kinds=3, epsilon=1.0)
    labels_N = np.repeat([0, 1, 2], [70_000, 25_000, 5_000])
    estimate_K = channel.frequencies(channel.privatise(labels_N, keyed(0, 1, 0, "f")))
    p, q = float(channel.probability(0, 0)), float(channel.probability(0, 1))
    spread = 0.5 / math.sqrt(100_000) / (p - q)
    assert np.abs(estimate_K - [0.7, 0.25, 0.05]).max() <= Z * spread
    assert estimate_K.sum() == pytest.approx(1.0, rel=1e-12)


def test_the_corrected_loss_is_the_true_one_in_expectation() -> None:
    """Over the channel's exact probabilities, loss and gradient: no sampling."""
    channel = RandomisedResponse(kinds=5, epsilon=0.7)
    generator = seeds.torch_rng(0, 1, 0, "loss")
    logits_NK = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels_N = torch.tensor([0, 1, 2, 3, 4, 2])
    loss_NK = -logits_NK.log_softmax(dim=1)
    mean_N = torch.zeros(6, dtype=torch.float64)
    for report in range(5):
        chance_N = torch.tensor([float(channel.probability(report, int(y))) for y in labels_N])
        mean_N = mean_N + chance_N.double() * channel.unbiased_loss(
            loss_NK, torch.full((6,), report)
        )
    true_N = loss_NK.gather(1, labels_N[:, None])[:, 0]
    torch.testing.assert_close(mean_N, true_N, rtol=0, atol=1e-6)
    ours = torch.autograd.grad(mean_N.sum(), logits_NK, retain_graph=True)[0]
    truth = torch.autograd.grad(true_N.sum(), logits_NK)[0]
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-6)


def test_labels_and_budgets_out_of_range_are_refused() -> None:
    channel = RandomisedResponse(kinds=3, epsilon=1.0)
    with pytest.raises(ConfigError, match="kinds=3"):
        channel.privatise(np.array([0, 3]), keyed(0, 1, 0, "x"))
    with pytest.raises(ConfigError, match="kinds=3"):
        channel.privatise(np.array([-1]), keyed(0, 1, 0, "x"))
    assert channel.privatise(np.array([], dtype=np.int64), keyed(0, 1, 0, "x")).size == 0
    for bad in ({"kinds": 1, "epsilon": 1.0}, {"kinds": 3, "epsilon": 40.0}):
        with pytest.raises(ConfigError):
            RandomisedResponse(**bad)  # type: ignore[arg-type]
    for epsilon, delta in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 0.1)):
        with pytest.raises(ConfigError, match="epsilon, delta"):
            gaussian_sigma(epsilon, delta, 1.0)
