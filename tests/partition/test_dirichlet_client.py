from collections import Counter

import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition.dirichlet_client import DirichletClient, _take_turns


def shares(part, dataset, seed=0):
    partition = part.split(dataset, np.random.default_rng(seed))
    histogram_NC = partition.label_histogram(dataset.labels(), dataset.num_outputs)
    return histogram_NC / histogram_NC.sum(axis=1, keepdims=True)


def test_turns_with_a_mixture_used_up_take_what_is_left():
    mix_NC = np.array([[1.0, 0.0], [1.0, 0.0]])
    turns, sizes = np.array([0, 1, 0, 1]), np.array([3, 1])
    taken = _take_turns(mix_NC, turns, sizes, np.random.default_rng(0))
    assert taken.tolist() == [0, 0, 0, 1]


def test_turns_follow_the_law_of_drawing_one_by_one():
    # Classes of 1 and 2 samples; client 0 draws twice from (3/4, 1/4), then client 1 from
    # (1/2, 1/2). By hand: (0,1,1) 3/4; (1,0,1) 1/4 * 3/4; (1,1,0) 1/4 * 1/4. Bound: 4.417 sigma of
    # a binomial count, one false alarm in 1e5 each.
    mix_NC = np.array([[0.75, 0.25], [0.5, 0.5]])
    turns, sizes = np.array([0, 0, 1]), np.array([1, 2])
    rng = np.random.default_rng(1)
    runs = 4000
    seen = Counter(tuple(_take_turns(mix_NC, turns, sizes, rng).tolist()) for _ in range(runs))
    expected = {(0, 1, 1): 3 / 4, (1, 0, 1): 3 / 16, (1, 1, 0): 1 / 16}
    assert set(seen) == set(expected)
    for classes, chance in expected.items():
        assert abs(seen[classes] - runs * chance) < 4.417 * np.sqrt(runs * chance * (1 - chance))


def test_what_is_left_is_taken_in_proportion():
    # All want class 0, which has one sample; three of class 1 and one of class 2 are left over, so
    # the second turn takes class 1 with chance 3/4: binomial, 4.417 sigma.
    mix_NC, sizes = np.array([[1.0, 0.0, 0.0]]), np.array([1, 3, 1])
    rng = np.random.default_rng(2)
    second = [int(_take_turns(mix_NC, np.array([0, 0]), sizes, rng)[1]) for _ in range(2000)]
    assert set(second) == {1, 2}
    assert abs(second.count(1) - 1500) < 4.417 * np.sqrt(2000 * 3 / 16)


def test_sizes_are_equal(balanced):
    dataset = balanced(10, 31)
    sizes = DirichletClient(num_clients=4).split(dataset, np.random.default_rng(0)).sizes
    assert sizes(np.arange(4)).tolist() == [78, 78, 77, 77]
    part = DirichletClient(num_clients=4, samples_per_client=20)
    assert part.split(dataset, np.random.default_rng(0)).sizes(np.arange(4)).tolist() == [20] * 4


def test_hsu_mixtures_have_the_mean_and_variance_of_their_law(labelled):
    # alpha = 3, class shares p = (.8, .2), 20 samples each: the share of class 0 has mean p, and
    # variance p(1-p) [1/(alpha+1) + (1 - 1/(alpha+1)) / 20] (mixture plus multinomial). 400 clients
    # take a tenth of the data, so that no class runs out and clients are independent.
    dataset = labelled([0] * 64_000 + [1] * 16_000)
    part = DirichletClient(num_clients=400, alpha=3, samples_per_client=20)
    share_N = shares(part, dataset)[:, 0]
    spread = 1 / 4
    variance = 0.8 * 0.2 * (spread + (1 - spread) / 20)
    assert abs(share_N.mean() - 0.8) < 4.417 * np.sqrt(variance / 400)
    assert abs(share_N.var() / variance - 1) < 4.417 * np.sqrt(4 / 400)  # kurtosis below 5


def test_symmetric_ignores_the_class_shares(labelled):
    dataset = labelled([0] * 64_000 + [1] * 16_000)
    part = DirichletClient(num_clients=400, alpha=3, samples_per_client=20, form="symmetric")
    variance = 0.25 * (1 / 7 + (6 / 7) / 20)
    assert abs(shares(part, dataset)[:, 0].mean() - 0.5) < 4.417 * np.sqrt(variance / 400)


def test_hsu_alpha_is_the_sum_and_symmetric_alpha_is_per_class(balanced):
    dataset = balanced(10, 100)
    hsu = shares(DirichletClient(num_clients=10, alpha=5), dataset)
    symmetric = shares(DirichletClient(num_clients=10, alpha=0.5, form="symmetric"), dataset)
    assert hsu.tolist() == symmetric.tolist()


def test_small_alpha_gives_nearly_one_class_each(balanced):
    # 500 of 5,000 samples: no class can run out.
    part = DirichletClient(num_clients=50, alpha=1e-3, samples_per_client=10)
    assert np.median(shares(part, balanced(10, 500)).max(axis=1)) == 1


def test_too_many_samples_asked_for(balanced):
    with pytest.raises(ConfigError, match=r"^samples_per_client: 10 clients x 11 .*client=10 or"):
        DirichletClient(num_clients=10, samples_per_client=11).split(
            balanced(10, 10), np.random.default_rng(0)
        )
