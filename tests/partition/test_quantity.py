import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ConfigError
from fedsim.partition.quantity import Quantity


def sizes(part, dataset, seed=0):
    return part.split(dataset, np.random.default_rng(seed)).sizes(np.arange(part.num_clients))


def test_no_spread_is_even(balanced):
    assert sizes(Quantity(num_clients=8, spread=0), balanced(4, 10)).tolist() == [5] * 8


def test_lognormal_sizes_have_the_spread(balanced):
    # The standard error of the standard deviation of 2,000 normal logs is .5 / sqrt(4000) = .008;
    # rounding sizes of about 500 and the one guaranteed sample change logs by a few 1e-3.
    logs = np.log(sizes(Quantity(num_clients=2000, spread=0.5), balanced(10, 10**5)))
    assert abs(logs.std() - 0.5) < 4.417 * 0.008 + 0.005


def test_dirichlet_sizes_have_the_marginal_law(balanced):
    # The share of one client of five is Beta(.5, 2): mean .2, variance .0457; 4,000 independent
    # draws of one client, 4.417 standard errors. Rounding to 1 in 200 adds (1/200)^2 / 6 at most.
    dataset, draws = balanced(2, 100), 4000
    part = Quantity(num_clients=5, law="dirichlet", alpha=0.5, min_size=0)
    share = np.array([sizes(part, dataset, seed)[0] for seed in range(draws)]) / 200
    law = stats.beta(0.5, 2)
    mu4 = law.expect(lambda x: (x - law.mean()) ** 4)
    assert abs(share.mean() - 0.2) < 4.417 * law.std() / np.sqrt(draws)
    bound = 4.417 * np.sqrt((mu4 - law.var() ** 2) / draws) + 200**-2 / 6
    assert abs(share.var() - law.var()) < bound


def test_labels_stay_iid(balanced):
    # Given sizes, the table of clients x classes is that of random dealing: chi-square with
    # (N - 1)(C - 1) degrees of freedom; bound at one false alarm in 1e5.
    dataset = balanced(4, 1000)
    part = Quantity(num_clients=10, spread=0.5)
    partition = part.split(dataset, np.random.default_rng(1))
    histogram_NC = partition.label_histogram(dataset.labels(), 4)
    expected_NC = histogram_NC.sum(axis=1, keepdims=True) / 4
    chi2 = ((histogram_NC - expected_NC) ** 2 / expected_NC).sum()
    assert chi2 < stats.chi2(9 * 3).isf(1e-5)


def test_min_size_is_a_floor(balanced):
    dataset = balanced(10, 50)
    rough = Quantity(num_clients=100, law="dirichlet", alpha=0.01, min_size=3)
    assert sizes(rough, dataset).min() == 3
    none = Quantity(num_clients=100, law="dirichlet", alpha=0.01, min_size=0)
    assert sizes(none, dataset).min() == 0
    exact = Quantity(num_clients=100, min_size=5)
    assert sizes(exact, dataset).tolist() == [5] * 100


def test_min_size_beyond_the_data(balanced):
    with pytest.raises(ConfigError, match=r"^min_size: 100 clients x 6 .* 500 train"):
        sizes(Quantity(num_clients=100, min_size=6), balanced(10, 50))
