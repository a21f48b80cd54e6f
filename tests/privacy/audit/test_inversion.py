"""Gradient inversion: exact at one sample without DP, defeated by clipping and noise."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim import seeds
from fedsim.errors import ConfigError
from privacy.audit import inversion


def digits(count: int) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:count] / 16).reshape(count, 1, 8, 8)
    return x, torch.tensor(labels[:count])


def network(seed: int = 0) -> nn.Sequential:
    rng = seeds.torch_rng(seed, 0, seeds.SERVER, "test-network")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10))
    model = model.double()
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return model


def gradients(model: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    loss = cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, list(model.parameters()), create_graph=True))


def private(grads: list[Tensor], clip: float = 1.0, noise: float = 1.0) -> list[Tensor]:
    """Clip one sample's gradient and add noise of standard deviation `noise · clip`."""
    rng = seeds.torch_rng(0, 1, 0, "test-noise")
    norm = torch.cat([g.flatten() for g in grads]).norm()
    factor = torch.clamp(clip / norm, max=1.0)
    return [
        (g * factor + noise * clip * torch.randn(g.shape, generator=rng, dtype=g.dtype)).detach()
        for g in grads
    ]


def test_one_sample_is_recovered_exactly_and_not_under_dp() -> None:
    model = network()
    images, labels = digits(10)
    exact, noisy, guessed = [], [], 0
    for x, y in zip(images[:, None], labels[:, None], strict=True):
        sent = [g.detach() for g in gradients(model, x, y)]
        assert inversion.idlg_label(sent[3]) == int(y)
        exact.append(inversion.linear_leak(sent[0], sent[1]).reshape(1, 8, 8))
        hidden = private(sent)
        guessed += inversion.idlg_label(hidden[3]) == int(y)
        noisy.append(inversion.linear_leak(hidden[0], hidden[1]).reshape(1, 8, 8))
    torch.testing.assert_close(torch.stack(exact), images, atol=1e-10, rtol=0)
    without = inversion.quality(images.numpy(), torch.stack(exact).numpy())
    under = inversion.quality(images.numpy(), torch.stack(noisy).numpy())
    assert without.psnr_B.min() > 150 and without.ssim_B.min() > 0.999
    assert under.psnr_B.max() < 12 and under.ssim_B.max() < 0.5
    assert guessed <= 5  # ten classes, ten guesses


def test_geipings_search_finds_a_digit_and_not_under_dp() -> None:
    model = network()
    x, y = digits(1)
    start = torch.full_like(x, 0.5)
    sent = [g.detach() for g in gradients(model, x, y)]

    def found(target: list[Tensor]) -> float:
        again = inversion.invert(
            lambda guess: gradients(model, guess, y), target, start, steps=300, tv_weight=1e-6
        )
        return float(inversion.quality(x.numpy(), again.numpy()).psnr_B[0])

    guess = float(inversion.quality(x.numpy(), start.numpy()).psnr_B[0])
    assert found(sent) > 30 > 15 > guess
    assert found(private(sent)) < 15


def test_a_batch_is_matched_before_it_is_scored() -> None:
    images, _ = digits(4)
    original = images.numpy()
    shuffled = original[[2, 0, 3, 1]]
    found = inversion.quality(original, shuffled)
    assert found.order_B.tolist() == [1, 3, 0, 2]
    assert np.isinf(found.psnr_B).all()
    np.testing.assert_allclose(found.ssim_B, 1)


def test_scores_by_hand() -> None:
    """Constants a, b: PSNR = −20 lg|a − b|, SSIM = (2ab + c₁)/(a² + b² + c₁), c₁ = 1e-4."""
    # One corner has another value, so that the range, to which pixels are clipped, is [0, 1].
    assert inversion.ssim(np.full((1, 8, 8), 0.5), np.full((1, 8, 8), 0.25)) == pytest.approx(
        (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4), rel=1e-12
    )
    a, b = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    a[0, 0, 0, 0], b[0, 0, 0, 1] = 1.0, 1.0  # mean squared error 2/4
    assert inversion.quality(a, b).psnr_B[0] == pytest.approx(10 * np.log10(2), rel=1e-12)
    with pytest.raises(ConfigError, match=r"B, C, H, W"):
        inversion.quality(a[0], b[0])


def test_no_bias_gradient_nothing_to_divide_by() -> None:
    with pytest.raises(ConfigError, match="zero"):
        inversion.linear_leak(torch.zeros(2, 3), torch.zeros(2))


def test_the_cosine_is_that_of_the_whole_gradient() -> None:
    one, other = (
        [torch.tensor([3.0]), torch.tensor([4.0])],
        [torch.tensor([4.0]), torch.tensor([3.0])],
    )
    assert float(inversion.cosine_distance(one, other)) == pytest.approx(1 - 24 / 25)
    x = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).reshape(1, 1, 2, 2)
    assert float(inversion.total_variation(x)) == pytest.approx((1 + 0) / 2 + (3 + 2) / 2)


def test_the_picture_is_a_png() -> None:
    images, _ = digits(3)
    rows = {"original": images.numpy(), "with DP": np.zeros((3, 1, 8, 8))}
    png = inversion.picture(rows, {"with DP": ["7.1 dB", "6.9 dB", "7.3 dB"]})
    assert png.startswith(b"\x89PNG") and len(png) > 2000
