import numpy as np
import torch

from fedsim.data.ill_conditioned import IllConditioned


def test_variances_span_the_condition_number_and_a_fit_leaves_the_noise():
    data = IllConditioned(samples=20_000, inputs=5, smallest=1e-2, noise=0.3).load()
    x, y = data.train_x.double(), data.train_y.double()
    expected = np.logspace(-2, 0, 5)
    assert np.abs(x.var(0).numpy() / expected - 1).max() < 0.05  # 5 deviations of sqrt(2/n)
    weights = torch.linalg.lstsq(x, y).solution
    left = (y - x @ weights).square().mean()
    assert abs(float(left) / 0.09 - 1) < 0.05
    unseen = (data.test_y.double() - data.test_x.double() @ weights).square().mean()
    assert abs(float(unseen) / 0.09 - 1) < 0.16


def test_the_draw_is_its_seeds():
    one, same, other = (IllConditioned(samples=9, data_seed=s).load() for s in (1, 1, 2))
    assert torch.equal(one.train_x, same.train_x) and torch.equal(one.test_y, same.test_y)
    assert not torch.equal(one.train_x, other.train_x)
    assert one.train_x.shape == (9, 20) and one.train_y.shape == (9, 1)
