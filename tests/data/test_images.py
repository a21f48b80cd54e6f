import numpy as np
import pytest
import torch

from fedsim.data.images import image_tensors


def test_bytes_become_channel_first_fractions():
    train = np.array([[[[0, 51, 102], [255, 0, 0]]]], np.uint8)  # one image, 1x2 pixels, 3 channels
    x, _ = image_tensors(train, train, normalise=False, flat=False)
    assert x.shape == (1, 3, 1, 2) and x.dtype == torch.float32
    assert x[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert x[0, :, 0, 1].tolist() == pytest.approx([1.0, 0.0, 0.0])
    flat, _ = image_tensors(train, train, normalise=False, flat=True)
    assert flat[0].tolist() == pytest.approx([0.0, 1.0, 0.2, 0.0, 0.4, 0.0])


def test_normalise_by_the_train_moments_of_each_channel():
    train = np.zeros((2, 1, 1, 2), np.uint8)
    train[:, 0, 0, 0] = (0, 255)  # mean 0.5, standard deviation 0.5
    train[:, 0, 0, 1] = 51  # constant: centred only
    test = np.full((1, 1, 1, 2), 102, np.uint8)
    x, other = image_tensors(train, test, normalise=True, flat=True)
    assert x.tolist() == [pytest.approx([-1.0, 0.0]), pytest.approx([1.0, 0.0])]
    assert other[0].tolist() == pytest.approx([-0.2, 0.2])


def test_moments_do_not_change_with_threads():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (50, 28, 28), np.uint8)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(image_tensors(train, train, normalise=True, flat=False)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert results[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert results[0].std().item() == pytest.approx(1, abs=1e-4)


def test_a_spread_of_pure_rounding_is_not_blown_up():
    # 7 pixels of 5/255: their mean is one ulp off, and their standard deviation 4e-18, not 0.
    train, test = np.full((7, 1, 1), 5, np.uint8), np.full((1, 1, 1), 56, np.uint8)
    x, other = image_tensors(train, test, normalise=True, flat=True)
    assert x.abs().max() < 1e-6 and other[0, 0].item() == pytest.approx(0.2)
