import numpy as np
import pytest

from fedsim.report.fairness import fairness, fairness_histogram


def test_worst_tenth_of_an_accuracy_is_the_lowest():
    spread = fairness("accuracy", np.arange(20, 0, -1) / 20)
    assert spread.worst == pytest.approx((1 + 2) / 40, abs=1e-15)
    assert spread.best == pytest.approx((19 + 20) / 40, abs=1e-15)
    assert spread.mean == pytest.approx(21 / 40, abs=1e-15)
    assert spread.deviation == pytest.approx(np.sqrt((20**2 - 1) / 12) / 20, abs=1e-15)
    assert spread.value_K[[0, -1]].tolist() == [1 / 20, 1.0]


@pytest.mark.parametrize(("clients", "tenth"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_tenth_is_rounded_up(clients, tenth):
    spread = fairness("accuracy", np.arange(clients, dtype=np.float64))
    assert spread.worst == np.arange(tenth).mean()


def test_worst_tenth_of_an_error_is_the_highest():
    spread = fairness("mse", np.array([1.0, 5.0, 3.0]))
    assert (spread.worst, spread.best) == (5.0, 1.0)  # a tenth of three clients is one client


def test_what_is_not_finite_is_counted_and_left_out():
    spread = fairness("mse", np.array([np.nan, 2.0, np.inf, 4.0, 1e300]))
    assert spread.left_out == 3 and spread.mean == 3.0
    assert fairness("mse", np.array([np.nan])) is None


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1e100, -1e100], list(range(1000))])
def test_the_histogram_names_mean_and_worst(values):
    spread = fairness("mse", np.array(values, np.float64))
    picture = fairness_histogram(spread)
    assert "mean:" in picture and "mean of the worst 10 %:" in picture
