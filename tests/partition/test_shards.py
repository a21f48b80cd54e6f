import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition.shards import Shards


def counts(part, dataset, seed=0):
    partition = part.split(dataset, np.random.default_rng(seed))
    return partition.label_histogram(dataset.labels(), dataset.num_outputs)


def test_one_shard_each_separates_two_classes(labelled):
    count_NC = counts(Shards(num_clients=2, shards_per_client=1), labelled([1, 0, 1, 0]))
    assert sorted(count_NC.tolist()) == [[0, 2], [2, 0]]


def test_shards_within_a_class_hold_that_class_alone(balanced):
    # 10 classes of 100 in shards of 10: none straddles classes; 50 clients x 2 shards.
    count_NC = counts(Shards(num_clients=50), balanced(10, 100))
    assert set(np.unique(count_NC)) <= {0, 10, 20}
    assert (count_NC.sum(axis=1) == 20).all()


def test_two_shards_meet_in_one_class_as_often_as_chance_says(balanced):
    # 100 shards, 10 of each class: the second shard is of the first's class with chance 9/99.
    # Over 40 x 50 clients the count is nearly binomial; 4.417 sigma is one false alarm in 1e5.
    dataset = balanced(10, 100)
    lone = sum(
        int((counts(Shards(num_clients=50), dataset, seed) == 20).sum()) for seed in range(40)
    )
    assert abs(lone - 2000 / 11) < 4.417 * np.sqrt(2000 / 11 * 10 / 11)


def test_shard_sizes_differ_by_one_when_they_must(balanced):
    # 103 samples in 10 shards: sizes 11, 11, 11, 10, ...; two each make 20, 21 or 22.
    sizes = Shards(num_clients=5).split(balanced(1, 103), np.random.default_rng(0)).sizes
    assert sizes(np.arange(5)).sum() == 103
    assert set(sizes(np.arange(5)).tolist()) <= {20, 21, 22}


def test_more_shards_than_samples(balanced):
    with pytest.raises(ConfigError, match=r"^shards_per_client: 6 clients x 2 .* 10 train"):
        Shards(num_clients=6).split(balanced(2, 5), np.random.default_rng(0))
