import numpy as np
import pytest

from fedsim.errors import ConfigError, DataError
from fedsim.partition.natural import Natural


@pytest.fixture
def users(labelled):
    column = np.array(["eve", "bob", "eve", "ann", "bob", "eve"])
    return labelled([0] * 6, columns={"user": column, "site": np.zeros(6, int)})


def held(part, dataset, seed=0):
    partition = part.split(dataset, np.random.default_rng(seed))
    return [sorted(partition.indices(k).tolist()) for k in range(partition.num_clients)]


def test_one_client_per_value_in_sorted_order(users):
    assert held(Natural(), users) == [[3], [1, 4], [0, 2, 5]]
    assert held(Natural(num_clients=3), users) == [[3], [1, 4], [0, 2, 5]]
    assert held(Natural(column="site"), users) == [[0, 1, 2, 3, 4, 5]]


def test_numbers_sort_as_numbers(labelled):
    dataset = labelled([0] * 3, columns={"user": np.array([10, 9, 100])})
    assert held(Natural(), dataset) == [[1], [0], [2]]


def test_fewer_clients_get_whole_users_dealt_evenly(labelled):
    column = np.repeat(np.arange(10), 4)
    dataset = labelled([0] * 40, columns={"user": column})
    groups = held(Natural(num_clients=3), dataset)
    of_user = [sorted(set(column[group].tolist())) for group in groups]
    assert sorted(len(group) for group in of_user) == [3, 3, 4]
    assert [len(group) for group in groups] == [4 * len(group) for group in of_user]
    assert groups != held(Natural(num_clients=3), dataset, seed=1)


def test_more_clients_than_users(users):
    with pytest.raises(ConfigError, match=r"^num_clients: 4 .* 3 values .*num_clients=null"):
        held(Natural(num_clients=4), users)


def test_no_such_column_names_those_there_are(users, labelled):
    with pytest.raises(ConfigError, match=r"^column: .*'usr'; available: site, user; did .*'user'"):
        held(Natural(column="usr"), users)
    with pytest.raises(ConfigError, match=r"available: none$"):
        held(Natural(), labelled([0, 1]))


def test_a_column_of_the_wrong_length(labelled):
    with pytest.raises(DataError, match=r"^column: .*\(3,\).*\(2,\)"):
        held(Natural(), labelled([0, 1], columns={"user": np.zeros(3)}))
