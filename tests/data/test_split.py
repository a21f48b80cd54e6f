import numpy as np
import pytest

from fedsim.data.split import holdout
from fedsim.errors import DataError


@pytest.mark.parametrize(("n", "fraction", "tests"), [(4, 0.25, 1), (100, 0.07, 7), (10, 0.25, 3)])
def test_rounds_up_and_covers_every_sample_once(n, fraction, tests):
    train, test = holdout(n, fraction, 0)
    assert len(test) == tests
    assert sorted([*train, *test]) == list(range(n))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()


def test_stratified_within_one_of_the_share():
    labels = np.repeat([0, 1, 2], [40, 8, 3])
    for seed in range(20):
        _, test = holdout(51, 0.25, seed, labels)
        counts = np.bincount(labels[test], minlength=3)
        assert counts[0] == 10 and counts[1] == 2 and counts[2] in (0, 1)


def test_seed_decides():
    assert (holdout(100, 0.3, 5)[1] == holdout(100, 0.3, 5)[1]).all()
    assert (holdout(100, 0.3, 5)[1] != holdout(100, 0.3, 6)[1]).any()


def test_every_sample_is_drawn_equally_often():
    # 2000 splits of 10 samples, 3 of them test samples: 600 each, standard deviation 20.5.
    drawn = np.bincount(np.concatenate([holdout(10, 0.3, s)[1] for s in range(2000)]), minlength=10)
    assert abs(drawn - 600).max() < 4.417 * 20.5


@pytest.mark.parametrize(("n", "fraction"), [(0, 0.5), (1, 0.5), (2, 0.9), (5, 1e-12)])
def test_both_sides_need_a_sample(n, fraction):
    with pytest.raises(DataError, match=r"data\.test_fraction"):
        holdout(n, fraction, 0)
