import numpy as np
import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.partition.noise import Noise

SHAPE = (30, 20, 20)  # 10 samples for each of 3 clients, 4,000 numbers each


def split(labelled, seed=0, sigma=0.6, dtype=torch.float32):
    dataset = labelled([0] * SHAPE[0], x=torch.zeros(SHAPE, dtype=dtype))
    return Noise(num_clients=3, sigma=sigma).split(dataset, np.random.default_rng(seed))


def test_variance_grows_with_the_client(labelled):
    # The variance of a sample variance of n normal numbers is 2 sigma^4 / n, so 4.417 standard
    # errors (one false alarm in 1e5) are 4.417 sqrt(2 / 4000) = 9.9 % of it.
    partition = split(labelled)
    for client in range(3):
        z = partition.transform(client, torch.zeros(10, 20, 20))
        assert abs(z.var().item() / (0.6 * (client + 1) / 3) - 1) < 0.099


def test_a_client_sees_the_same_noise_every_time_and_its_own(labelled):
    partition = split(labelled)
    x = torch.randn(10, 20, 20, generator=torch.Generator().manual_seed(0))
    first = partition.transform(1, x)
    partition.transform(2, x)
    assert torch.equal(first, partition.transform(1, x))
    # Up to scale, another client's noise is another: their correlation is N(0, 1/4000).
    z1, z2 = (partition.transform(k, torch.zeros(10, 20, 20)).flatten() for k in (1, 2))
    assert abs(torch.corrcoef(torch.stack([z1, z2]))[0, 1]) < 4.417 / 4000**0.5
    # No two positions share their noise either.
    assert len(torch.unique(z1)) > 3990


def test_noise_is_added_and_depends_on_the_seed_alone(labelled):
    one, same, other = split(labelled), split(labelled), split(labelled, seed=1)
    x, zero = torch.ones(10, 20, 20), torch.zeros(10, 20, 20)
    assert torch.allclose(one.transform(0, x) - 1, one.transform(0, zero), atol=1e-6)
    assert torch.equal(one.transform(0, x), same.transform(0, x))
    assert not torch.equal(one.transform(0, x), other.transform(0, x))


def test_noise_is_the_same_in_either_precision(labelled):
    partition = split(labelled)
    single = partition.transform(0, torch.zeros(10, 20, 20))
    double = partition.transform(0, torch.zeros(10, 20, 20, dtype=torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


def test_no_sigma_no_noise(labelled):
    x = torch.ones(10, 20, 20)
    assert torch.equal(split(labelled, sigma=0.0).transform(2, x), x)


def test_part_of_a_clients_samples_is_refused(labelled):
    with pytest.raises(ValueError, match="got 9 rows; it needs all 10"):
        split(labelled).transform(0, torch.zeros(9, 20, 20))


def test_refuses_tokens(labelled):
    with pytest.raises(ConfigError, match=r"^sigma: .*torch.int64; use partition=iid"):
        split(labelled, dtype=torch.int64)
