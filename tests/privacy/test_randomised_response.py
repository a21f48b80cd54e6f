import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.normal import keyed
from privacy.randomised_response import RandomisedResponse

Z = 4.417


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
