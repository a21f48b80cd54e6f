import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition.iid import Iid


def test_sizes_differ_by_at_most_one(balanced):
    sizes = Iid(num_clients=7).split(balanced(10, 3), np.random.default_rng(0)).sizes(np.arange(7))
    assert sizes.tolist() == [5, 5, 4, 4, 4, 4, 4]


def test_one_client_may_hold_one_sample_but_not_none(balanced):
    dataset = balanced(2, 3)
    assert Iid(num_clients=6).split(dataset, np.random.default_rng(0)).num_clients == 6
    with pytest.raises(ConfigError, match=r"num_clients: 7 .*partition=resampled"):
        Iid(num_clients=7).split(dataset, np.random.default_rng(0))


def test_a_million_clients(balanced):
    partition = Iid(num_clients=10**6).split(balanced(10, 10**5), np.random.default_rng(0))
    assert partition.sizes(np.array([0, 999_999])).tolist() == [1, 1]


def test_shares_are_random(balanced):
    # Client 0 of 2 holds 500 of 1,000: its number of the 500 class-0 samples is hypergeometric with
    # mean 250 and variance 500 * .5 * .5 * 500/999 = 62.6; 4.417 sigma (1e-5) is 35.
    dataset = balanced(2, 500)
    for seed in range(5):
        partition = Iid(num_clients=2).split(dataset, np.random.default_rng(seed))
        assert abs(partition.label_histogram(dataset.labels(), 2)[0, 0] - 250) <= 35
