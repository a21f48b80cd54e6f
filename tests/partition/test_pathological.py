import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition.pathological import Pathological


def counts(part, dataset, seed=0):
    partition = part.split(dataset, np.random.default_rng(seed))
    return partition.label_histogram(dataset.labels(), dataset.num_outputs)


def test_cyclic_by_hand(balanced):
    # Clients hold {0,1}, {1,2}, {2,0}, {0,1}; 7 samples per class, the remainder to the first.
    part = Pathological(num_clients=4, choice="cyclic")
    expected = [[3, 3, 0], [0, 2, 4], [2, 0, 3], [2, 2, 0]]
    assert counts(part, balanced(3, 7)).tolist() == expected


@pytest.mark.parametrize("choice", ["first", "random", "cyclic"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_every_client_holds_exactly_k_classes(choice, k, balanced):
    part = Pathological(num_clients=30, classes_per_client=k, choice=choice)
    assert ((counts(part, balanced(10, 200)) > 0).sum(axis=1) == k).all()


def test_first_gives_client_n_class_n(balanced):
    count_NC = counts(Pathological(num_clients=25), balanced(10, 200))
    assert (count_NC[np.arange(25), np.arange(25) % 10] > 0).all()


def test_first_draws_the_others_uniformly(balanced):
    # Client 0 holds class 0 and one of nine others; over 900 draws each about 100 times:
    # 4.417 sqrt(900 * 1/9 * 8/9) = 42.
    dataset = balanced(10, 4)
    part = Pathological(num_clients=2)
    other = [int(np.flatnonzero(counts(part, dataset, s)[0])[1]) for s in range(900)]
    assert np.abs(np.bincount(other, minlength=10)[1:] - 100).max() < 42


@pytest.mark.parametrize("choice", ["first", "random"])
def test_holders_share_a_class_equally(choice, balanced):
    count_NC = counts(Pathological(num_clients=23, choice=choice), balanced(10, 201))
    for column in count_NC.T:
        held = column[column > 0]
        assert held.sum() in (0, 201)
        assert held.size == 0 or held.max() - held.min() <= 1


def test_a_class_nobody_chose_is_left_out(balanced):
    count_NC = counts(Pathological(num_clients=3, classes_per_client=1), balanced(5, 4))
    assert count_NC.sum(axis=0).tolist() == [4, 4, 4, 0, 0]


def test_more_classes_than_there_are(balanced):
    with pytest.raises(ConfigError, match=r"^classes_per_client: 4 .* 3 classes .*\[1, 3\]"):
        counts(Pathological(num_clients=3, classes_per_client=4), balanced(3, 5))


def test_as_many_holders_as_samples_but_no_more(balanced):
    assert counts(Pathological(num_clients=5), balanced(2, 5)).tolist() == [[1, 1]] * 5
    with pytest.raises(ConfigError, match=r"^classes_per_client: 6 clients share .* 5 samples"):
        counts(Pathological(num_clients=6), balanced(2, 5))
