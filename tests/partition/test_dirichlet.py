import numpy as np
import pytest
from scipy import stats

from fedsim.errors import ConfigError
from fedsim.partition.dirichlet import Dirichlet


def counts(part, dataset, seed=0):
    partition = part.split(dataset, np.random.default_rng(seed))
    return partition.label_histogram(dataset.labels(), dataset.num_outputs)


def test_shares_have_the_mean_and_variance_of_the_dirichlet_marginal(balanced):
    # One client's share of a class is Beta(alpha, (N - 1) alpha); 1,000 classes are 1,000
    # independent draws. 4.417 standard errors: one false alarm in 1e5. The variance of a sample
    # variance is (mu4 - sigma^4) / n. Rounding to 1 in 200 adds at most (1/400)^2 to the variance.
    alpha, num_clients = 0.5, 5
    share_C = counts(Dirichlet(num_clients=num_clients, alpha=alpha), balanced(1000, 200))[0] / 200
    law = stats.beta(alpha, (num_clients - 1) * alpha)
    variance, mu4 = law.var(), law.expect(lambda x: (x - law.mean()) ** 4)
    assert abs(share_C.mean() - law.mean()) < 4.417 * np.sqrt(variance / 1000) + 1 / 400
    bound = 4.417 * np.sqrt((mu4 - variance**2) / 1000) + 400**-2
    assert abs(share_C.var() - variance) < bound


def test_equals_the_scheme_written_as_loops(balanced):
    rng = np.random.default_rng(3)
    expected = np.zeros((6, 4), int)
    for c in range(4):
        start, total = 0, 0.0
        for n, share in enumerate(rng.dirichlet([0.7] * 6)):
            total += share
            end = 50 if n == 5 else round(total * 50)
            expected[n, c] = end - start
            start = end
    part = Dirichlet(num_clients=6, alpha=0.7, min_size=0)
    assert counts(part, balanced(4, 50), seed=3).tolist() == expected.tolist()


def test_self_balancing_equals_the_scheme_written_as_loops(balanced):
    rng = np.random.default_rng(4)
    share_CN = [rng.dirichlet([0.2] * 6) for _ in range(8)]
    expected = np.zeros((6, 8), int)
    for c in range(8):
        weights = [0.0 if expected[n].sum() >= 8 * 50 / 6 else share_CN[c][n] for n in range(6)]
        last = max(n for n in range(6) if weights[n] > 0)
        start, total = 0, 0.0
        for n in range(last + 1):
            total += weights[n] / sum(weights)
            end = 50 if n == last else round(total * 50)
            expected[n, c] = end - start
            start = end
    part = Dirichlet(num_clients=6, alpha=0.2, self_balancing=True, min_size=0)
    assert counts(part, balanced(8, 50), seed=4).tolist() == expected.tolist()


def test_self_balancing_evens_sizes_out(balanced):
    dataset = balanced(10, 600)
    plain = counts(Dirichlet(num_clients=20, alpha=0.1), dataset).sum(axis=1)
    even = counts(Dirichlet(num_clients=20, alpha=0.1, self_balancing=True), dataset).sum(axis=1)
    # Nobody is dealt to once at the average of 300, so no size passes the average plus one class.
    assert even.max() < 300 + 600
    assert even.std() < plain.std()


def test_self_balancing_survives_shares_that_underflow(balanced):
    part = Dirichlet(num_clients=4, alpha=1e-6, self_balancing=True, min_size=0)
    count_NC = counts(part, balanced(12, 10))
    assert count_NC.sum(axis=0).tolist() == [10] * 12
    assert count_NC.sum(axis=1).max() <= 30 + 9


def test_min_size_is_met_or_refused_with_advice(balanced):
    dataset = balanced(10, 5000)
    assert counts(Dirichlet(num_clients=20, min_size=500), dataset).sum(axis=1).min() >= 500
    # FedAU's setting: with 10 as the smallest size, no draw will do.
    part = Dirichlet(num_clients=250, alpha=0.1, min_size=10)
    with pytest.raises(ConfigError, match=r"^min_size: .*250 clients at least 10 .*ion=fedau"):
        part.split(dataset, np.random.default_rng(42))


def test_empty_clients_only_where_allowed(balanced):
    dataset = balanced(2, 10)
    few = Dirichlet(num_clients=30, alpha=0.1, min_size=0)
    assert (counts(few, dataset).sum(axis=1) == 0).any()
    with pytest.raises(ConfigError, match="num_clients: 30 is more than the 20"):
        Dirichlet(num_clients=30, alpha=0.1).split(dataset, np.random.default_rng(0))


def test_large_alpha_is_even_and_small_alpha_is_one_class_one_client(balanced):
    assert counts(Dirichlet(num_clients=5, alpha=1e6), balanced(4, 100)).tolist() == [[20] * 4] * 5
    lone = counts(Dirichlet(num_clients=5, alpha=1e-6, min_size=0), balanced(4, 100))
    assert (np.sort(lone, axis=0) == [[0] * 4] * 4 + [[100] * 4]).all()


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), 1e-9])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ConfigError, match=r"^alpha: .* out of range"):
        Dirichlet(alpha=alpha)
