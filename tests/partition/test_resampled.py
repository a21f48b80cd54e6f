import tracemalloc

import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ConfigError
from fedsim.partition.resampled import Resampled


def split(dataset, seed=0, **fields):
    return Resampled(**fields).split(dataset, np.random.default_rng(seed))


def test_ten_million_clients_cost_no_memory(balanced):
    dataset = balanced(10, 100)
    tracemalloc.start()
    partition = split(dataset, num_clients=10**7, samples_per_client=20)
    partition.indices(9_999_999)
    assert partition.sizes(np.array([0, 9_999_999])).tolist() == [20, 20]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_samples_are_distinct_and_a_function_of_seed_and_client(balanced):
    dataset = balanced(10, 10)
    partition, again = (split(dataset, num_clients=50, samples_per_client=60) for _ in range(2))
    for client in (0, 7, 49):
        held = partition.indices(client)
        assert len(set(held.tolist())) == 60 and held.min() >= 0 and held.max() < 100
    assert partition.indices(3).tolist() == again.indices(3).tolist()
    assert partition.indices(3).tolist() != partition.indices(4).tolist()
    other = split(dataset, seed=1, num_clients=50, samples_per_client=60)
    assert partition.indices(3).tolist() != other.indices(3).tolist()


def test_every_sample_is_as_likely_as_any_other(balanced):
    # 2,000 independent draws of 5 of 50: sample counts have mean 200, variance 2000 * .1 * .9 and
    # sum 10,000, so sum (count - 200)^2 / (180 * 50/49) is chi-square with 49 degrees of freedom.
    partition = split(balanced(10, 5), num_clients=2000, samples_per_client=5)
    count = np.bincount(np.concatenate([partition.indices(k) for k in range(2000)]), minlength=50)
    chi2 = ((count - 200) ** 2).sum() / (180 * 50 / 49)
    assert stats.chi2(49).ppf(1e-5) < chi2 < stats.chi2(49).isf(1e-5)


def test_the_whole_pool_but_not_more(balanced):
    dataset = balanced(2, 5)
    whole = split(dataset, num_clients=2, samples_per_client=10).indices(1)
    assert sorted(whole.tolist()) == list(range(10))
    with pytest.raises(ConfigError, match=r"^samples_per_client: 11 .*\[1, 10\]"):
        split(dataset, num_clients=2, samples_per_client=11)


@pytest.mark.parametrize("client", [-1, 2])
def test_there_is_no_such_client(client, balanced):
    with pytest.raises(IndexError, match=r"outside \[0, 2\)"):
        split(balanced(2, 5), num_clients=2, samples_per_client=1).indices(client)
