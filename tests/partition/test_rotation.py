import numpy as np
import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.partition.iid import Iid
from fedsim.partition.rotation import Rotation


def test_client_n_turns_by_n_quarters(labelled):
    dataset = labelled([0] * 10, x=torch.zeros(10, 1, 2, 2))
    partition = Rotation(num_clients=5).split(dataset, np.random.default_rng(0))
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    turned = [partition.transform(k, x).reshape(2, 2).tolist() for k in range(5)]
    assert turned == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[1, 2], [3, 4]],
    ]


def test_turns_are_dealt_in_the_order_given(labelled):
    dataset = labelled([0] * 4, x=torch.zeros(4, 3, 2))
    partition = Rotation(num_clients=4, quarter_turns=[2, 0]).split(
        dataset, np.random.default_rng(0)
    )
    x = torch.arange(6.0).reshape(1, 3, 2)
    assert partition.transform(0, x).flatten().tolist() == [5, 4, 3, 2, 1, 0]
    assert partition.transform(3, x).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_samples_are_split_as_iid_does(labelled):
    dataset = labelled([0] * 23, x=torch.zeros(23, 2, 2))
    turned = Rotation(num_clients=4).split(dataset, np.random.default_rng(6))
    plain = Iid(num_clients=4).split(dataset, np.random.default_rng(6))
    assert turned.order.tolist() == plain.order.tolist()
    assert turned.transforms and not plain.transforms


def test_refuses_what_is_no_image(labelled):
    with pytest.raises(ConfigError, match=r"^quarter_turns: .*\(7,\).*partition=noise"):
        Rotation(num_clients=1).split(labelled([0], x=torch.zeros(1, 7)), np.random.default_rng(0))


def test_refuses_quarter_turns_of_oblong_images(labelled):
    dataset = labelled([0], x=torch.zeros(1, 1, 2, 3))
    with pytest.raises(ConfigError, match=r"^quarter_turns: .* 2x3 .*quarter_turns=\[0,2\]"):
        Rotation(num_clients=1).split(dataset, np.random.default_rng(0))


@pytest.mark.parametrize("turns", [[], [4], [-1], [0.5]])
def test_refuses_other_turns(turns):
    with pytest.raises(ConfigError, match=r"^quarter_turns"):
        Rotation(quarter_turns=turns)
