import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.partition import assign


def rng():
    return np.random.default_rng(0)


def test_equal_sizes_differ_by_one_and_put_the_larger_first():
    assert assign.equal_sizes(11, 4).tolist() == [3, 3, 3, 2]
    assert assign.equal_sizes(8, 4).tolist() == [2, 2, 2, 2]
    assert assign.equal_sizes(2, 3).tolist() == [1, 1, 0]


def test_cut_rounds_cut_points_to_the_nearest_and_uses_every_sample():
    share_NC = np.array([[0.26, 1.0], [0.5, 0.0], [0.24, 0.0]])
    # Class 0: cut points 2.6 and 7.6 of 10 round to 3 and 8. Class 1: all at client 0.
    assert assign.cut(share_NC, np.array([10, 7])).tolist() == [[3, 7], [5, 0], [2, 0]]


def test_cut_survives_shares_that_sum_to_slightly_more_or_less_than_one():
    for excess in (1e-9, -1e-9, 0.2):
        share_NC = np.array([[0.5 + excess], [0.5 + excess], [0.0]])
        count_NC = assign.cut(share_NC, np.array([4]))
        assert count_NC.sum() == 4 and count_NC.min() == 0


def test_normalise_makes_an_underflown_column_uniform():
    weight_NC = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert assign.normalise(weight_NC).tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_by_owner_groups_samples_and_leaves_out_the_unused():
    partition = assign.by_owner(np.array([2, 0, -1, 2, 0, 2]), 4, rng())
    held = [sorted(partition.indices(k).tolist()) for k in range(4)]
    assert held == [[1, 4], [], [0, 3, 5], []]
    assert partition.order.dtype == np.int64


def test_by_owner_puts_a_clients_samples_in_random_order():
    # Every of the 2 x 100 positions: the chance that 100 samples come out sorted is 1/100!.
    partition = assign.by_owner(np.repeat([0, 1], 100), 2, rng())
    assert np.any(np.diff(partition.indices(0)) < 0)


def test_by_class_counts_gives_exactly_the_counts():
    label_M = np.array([0, 1, 0, 1, 0, 2])
    count_NC = np.array([[2, 0, 0], [1, 1, 0]])  # one of class 1 and all of class 2 stay unused
    partition = assign.by_class_counts(label_M, count_NC, rng())
    assert partition.label_histogram(label_M, 3).tolist() == count_NC.tolist()
    assert len(set(partition.order.tolist())) == 4


def test_large_enough_takes_the_first_draw_that_serves_everyone():
    draws = iter([np.array([[1, 0], [5, 5]]), np.array([[1, 1], [4, 5]]), np.array([[9, 9]])])
    assert assign.large_enough(lambda: next(draws), 2).tolist() == [[1, 1], [4, 5]]


def test_large_enough_gives_up_and_says_what_was_possible():
    with pytest.raises(ConfigError, match=r"^min_size: in 100 draws.* had 3.*partition.min_size=3"):
        assign.large_enough(lambda: np.array([[3], [9]]), 4)


def test_more_clients_than_samples_recommends_resampled():
    assign.check_enough(5, 5)
    with pytest.raises(ConfigError, match=r"^num_clients: 6 .* 5 train.*partition=resampled"):
        assign.check_enough(5, 6)
