import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.participation.bernoulli import Bernoulli
from fedsim.partition.fedau import FedAUPartition

TINY = 1e-9


def rates(population, histogram, seed=0, **fields):
    bound = population(histogram=np.array(histogram), seed=seed)
    return Bernoulli(**fields).client_rates(bound)


def test_homogeneous_is_the_rate_and_costs_no_memory(population):
    rate_N = Bernoulli(rate=0.3).client_rates(population(10**7))
    assert rate_N.shape == (10**7,) and rate_N[-1] == 0.3
    assert rate_N.strides == (0,)


def test_unequal_rates_by_hand(population):
    p = Bernoulli(rates="unequal", min_rate=0.01, max_rate=0.16).client_rates(population(2))
    assert np.allclose(sorted(p), [0.01 * 16**0.25, 0.01 * 16**0.75], atol=1e-15)  # 0.02, 0.08
    others = {tuple(Bernoulli(rates="unequal").client_rates(population(5, s))) for s in range(9)}
    assert len(others) > 1 and len({tuple(sorted(o)) for o in others}) == 1


def test_label_correlated_rates_of_pure_clients_sum_to_rate_times_classes(population):
    # Client c holds class c alone: p_c = rate C kappa_c, and kappa sums to 1.
    pure = np.eye(10, dtype=int) * 7
    p = rates(population, pure, rates="label_correlated", rate=0.1, min_rate=TINY)
    assert abs(p.sum() - 0.1 * 10) < 1e-6
    assert p.max() > 0.3  # alpha = 0.1: a few classes decide


def test_label_correlated_rates_are_linear_in_the_label_shares(population):
    histogram = [[5, 0, 0], [0, 8, 0], [0, 0, 1], [2, 2, 0], [10, 20, 10], [3, 3, 3]]
    p = rates(population, histogram, rates="label_correlated", rate=0.2, alpha=1, min_rate=TINY)
    assert abs(p[3] - (p[0] + p[1]) / 2) < 1e-12
    assert abs(p[4] - (p[0] + 2 * p[1] + p[2]) / 4) < 1e-12
    assert abs(p[5] - 0.2) < 1e-12  # all classes alike: the mean, whatever kappa


def test_label_correlated_rates_have_a_floor_and_a_cap(population):
    pure = np.eye(10, dtype=int)
    fields = {"rates": "label_correlated", "alpha": 0.1}
    p = rates(population, pure, rate=1, min_rate=0.02, **fields)  # 10 kappa_c: far above 1
    assert p.min() == 0.02 and p.max() == 1
    p = rates(population, pure, rate=1, min_rate=0.3, max_rate=0.4, **fields)
    assert p.min() == 0.3 and p.max() == 0.4


def test_label_correlated_rates_are_a_function_of_the_seed(population):
    pure, fields = np.eye(10, dtype=int), {"rates": "label_correlated"}
    one, same, other = (rates(population, pure, seed=s, **fields) for s in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()


def test_large_alpha_makes_label_correlated_rates_equal(population):
    p = rates(population, np.eye(10, dtype=int), rates="label_correlated", alpha=1e6)
    assert np.abs(p - 0.1).max() < 0.001


def test_fedaus_setting_has_the_published_mean_and_share_at_the_floor(population):
    # 250 clients, alphas 0.1, balanced labels: mean rate 0.10-0.11, 33-42 % of clients at 0.02 in
    # the runs of the authors' scheme that the facts come from. Both vary with kappa (the share
    # from 20 to 56 % over seeds, standard deviation below 10 %), so means of 20 seeds: 2 % each.
    part, size_C = FedAUPartition(num_clients=250), np.full(10, 5000)
    means, floors = [], []
    for seed in range(20):
        count_NC = part._draw(size_C, np.random.default_rng(seed))
        p = rates(population, count_NC, seed=seed, rates="label_correlated")
        means.append(p.mean())
        floors.append((p == 0.02).mean())
    assert 0.10 <= np.mean(means) <= 0.11
    assert 0.33 <= np.mean(floors) <= 0.42


def test_label_adversarial_by_hand(population):
    histogram = np.zeros((4, 10), int)
    histogram[0, [0, 5]] = 1
    histogram[1, [3, 4]] = 9
    histogram[2, 9] = 2  # client 3 holds nothing
    p = rates(population, histogram, rates="label_adversarial", min_rate=0.1, max_rate=1)
    assert np.allclose(p, [0.1, 0.1 + 0.9 * 3 / 9, 1.0, 0.1], atol=1e-15)


def test_label_adversarial_with_one_class(population):
    assert rates(population, [[3]], rates="label_adversarial").tolist() == [0.02]


def test_a_client_without_samples_gets_the_floor(population):
    p = rates(population, [[0, 0], [1, 1]], rates="label_correlated", rate=0.5)
    assert p.tolist() == [0.02, 0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0}, r"^rate: .*\(0, 1\]"),
        ({"rate": 1.1}, r"^rate: "),
        ({"min_rate": 0.0}, r"^min_rate: "),
        ({"min_rate": 0.5, "max_rate": 0.4}, r"^min_rate: 0.5 is above max_rate, 0.4"),
        ({"rates": "random"}, r"^rates: 'random' .* label_correlated, label_adversarial"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ConfigError, match=message):
        Bernoulli(**fields)
