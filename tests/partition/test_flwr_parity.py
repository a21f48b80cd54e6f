"""Against flwr-datasets, where it has the same scheme.

With the same generator our draws of proportions are the same numbers, so most histograms agree to
the rounding of cut points; the samples behind them need not be the same ones.
"""

import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition import assign
from fedsim.partition.dirichlet import Dirichlet
from fedsim.partition.dirichlet_client import DirichletClient
from fedsim.partition.iid import Iid
from fedsim.partition.natural import Natural
from fedsim.partition.pathological import Pathological
from fedsim.partition.shards import Shards

datasets = pytest.importorskip("datasets")
theirs = pytest.importorskip("flwr_datasets.partitioner")


def ours(part, dataset, seed=42):
    partition = part.split(dataset, np.random.default_rng(seed))
    return partition.label_histogram(dataset.labels(), dataset.num_outputs)


def flwr(partitioner, dataset):
    rows = {"label": dataset.labels().tolist()}
    partitioner.dataset = datasets.Dataset.from_dict(rows)
    clients = range(partitioner.num_partitions)
    parts = [partitioner.load_partition(k).with_format("numpy")["label"][:] for k in clients]
    return np.stack([np.bincount(part, minlength=dataset.num_outputs) for part in parts])


@pytest.mark.parametrize("num_clients", [1, 7, 100])
def test_iid_sizes(num_clients, balanced):
    dataset = balanced(10, 33)
    mine = ours(Iid(num_clients=num_clients), dataset)
    other = flwr(theirs.IidPartitioner(num_clients), dataset)
    assert mine.sum(axis=1).tolist() == other.sum(axis=1).tolist()


@pytest.mark.parametrize("self_balancing", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_class_wise_dirichlet(alpha, self_balancing, balanced):
    # Same shares; a cut point rounded down (theirs) or to the nearest (ours) differs by one sample.
    # Classes are large so that no one sample decides whether a client is above the average.
    dataset = balanced(10, 1001)
    options = {"alpha": alpha, "self_balancing": self_balancing}
    mine = ours(Dirichlet(num_clients=20, min_size=0, **options), dataset)
    other = flwr(theirs.DirichletPartitioner(20, "label", min_partition_size=0, **options), dataset)
    assert np.abs(mine - other).max() <= 1


def test_class_wise_dirichlet_draws_again_alike(balanced):
    dataset = balanced(10, 1000)
    mine = ours(Dirichlet(num_clients=40, alpha=0.3, min_size=70), dataset, seed=7)
    first = ours(Dirichlet(num_clients=40, alpha=0.3, min_size=0), dataset, seed=7)
    partitioner = theirs.DirichletPartitioner(40, "label", 0.3, min_partition_size=70, seed=7)
    with pytest.warns(UserWarning, match="min_partition_size"):
        other = flwr(partitioner, dataset)
    assert np.abs(mine - other).max() <= 1
    assert not np.array_equal(mine, first)


def test_both_refuse_fedaus_setting_with_their_default_size(balanced):
    dataset = balanced(10, 5000)
    partitioner = theirs.DirichletPartitioner(250, "label", 0.1)
    with pytest.raises(ValueError, match="max number of attempts"), pytest.warns(UserWarning):
        flwr(partitioner, dataset)
    with pytest.raises(ConfigError, match="min_size"):
        ours(Dirichlet(num_clients=250, alpha=0.1, min_size=10), dataset)


def test_client_wise_dirichlet_has_the_same_label_concentration(balanced):
    # They pick the next client anew each time, we deal a fixed number of turns: equal up to the
    # order of turns. Compared is sum_c share_c^2 per client, over 10 x 20 clients each, with a
    # two-sample bound of 4.417 standard errors.
    dataset = balanced(10, 60)
    mine, other = [], []
    part = DirichletClient(num_clients=20, alpha=0.5, form="symmetric")
    for seed in range(10):
        sizes = assign.equal_sizes(600, 20)
        partitioner = theirs.InnerDirichletPartitioner(sizes, "label", 0.5, seed=seed)
        for histogram_NC, squares in (
            (ours(part, dataset, seed), mine),
            (flwr(partitioner, dataset), other),
        ):
            assert histogram_NC.sum(axis=1).tolist() == [30] * 20
            squares.extend(((histogram_NC / 30) ** 2).sum(axis=1))
    error = np.sqrt((np.var(mine) + np.var(other)) / 200)
    assert abs(np.mean(mine) - np.mean(other)) < 4.417 * error


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards(shards, balanced):
    dataset = balanced(10, 60)
    mine = ours(Shards(num_clients=20, shards_per_client=shards), dataset)
    partitioner = theirs.ShardPartitioner(20, "label", num_shards_per_partition=shards)
    assert mine.tolist() == flwr(partitioner, dataset).tolist()


def test_pathological_cyclic_is_their_deterministic(balanced):
    dataset = balanced(10, 61)
    mine = ours(Pathological(num_clients=23, classes_per_client=3, choice="cyclic"), dataset)
    partitioner = theirs.PathologicalPartitioner(
        23, "label", 3, class_assignment_mode="deterministic"
    )
    assert mine.tolist() == flwr(partitioner, dataset).tolist()


@pytest.mark.parametrize(
    ("choice", "mode"), [("first", "first-deterministic"), ("random", "random")]
)
def test_pathological_choices_and_sharing_alike(choice, mode, balanced):
    dataset = balanced(10, 61)
    mine = ours(Pathological(num_clients=23, choice=choice), dataset)
    partitioner = theirs.PathologicalPartitioner(23, "label", 2, class_assignment_mode=mode)
    for histogram_NC in (mine, flwr(partitioner, dataset)):
        assert ((histogram_NC > 0).sum(axis=1) == 2).all()
        if choice == "first":
            assert (histogram_NC[np.arange(23), np.arange(23) % 10] > 0).all()
        for column in histogram_NC.T:  # in client order, larger shares first
            held = column[column > 0]
            assert held.tolist() == assign.equal_sizes(61, max(len(held), 1)).tolist()[: len(held)]


def test_natural(labelled):
    users = np.array(["eve", "bob", "eve", "ann", "bob", "eve", "Zoe"])
    dataset = labelled([0] * 7, columns={"user": users})
    mine = Natural().split(dataset, np.random.default_rng(0))
    partitioner = theirs.NaturalIdPartitioner("user")
    partitioner.dataset = datasets.Dataset.from_dict({"user": users, "row": range(7)})
    assert mine.num_clients == partitioner.num_partitions
    for k in range(mine.num_clients):
        assert sorted(mine.indices(k)) == sorted(partitioner.load_partition(k)["row"])
