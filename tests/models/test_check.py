import dataclasses

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.check import check_model
from fedsim.models.dropout import KeyedDropout


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def test_right_models_pass(images, text):
    check_model(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), images(3, 2, 2))
    check_model(nn.Linear(4, 3), images(4, outputs=3, task="regression"))
    check_model(nn.Embedding(65, 65), text())
    check_model(nn.Linear(4, 10).double(), images(4))  # data are moved to the model's dtype
    check_model(nn.Linear(4, 10), images(4, n=1))


def test_wrong_output_says_both_shapes(images, text):
    with pytest.raises(ConfigError) as error:
        check_model(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), images(3, 2, 2))
    assert "gives [2, 7] for inputs [2, 3, 2, 2] of data set 'made_up'" in str(error.value)
    assert "expected [2, 10]" in str(error.value)
    with pytest.raises(ConfigError, match=r"gives \[2, 32, 64\].*expected \[2, 32, 65\]"):
        check_model(nn.Embedding(65, 64), text())
    with pytest.raises(ConfigError, match=r"gives \[2, 65\].*expected \[2, 32, 65\]"):
        check_model(Returns(torch.zeros(2, 65)), text())
    with pytest.raises(ConfigError, match=r"expected \[2, 3\].*of this regression"):
        check_model(nn.Linear(4, 1), images(4, outputs=3, task="regression"))
    with pytest.raises(ConfigError, match=r"gives \[1, 10\]"):
        check_model(Returns(torch.zeros(1, 10)), images(4))
    with pytest.raises(ConfigError, match=r"gives a dict"):
        check_model(Returns({"logits": 1}), images(4))


def test_failing_forward_is_told_in_one_line(images):
    with pytest.raises(ConfigError, match=r"Linear fails on inputs \[2, 4\].*RuntimeError: mat1"):
        check_model(nn.Linear(5, 10), images(4))

    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("first\n  second")

    with pytest.raises(ConfigError) as error:
        check_model(Fails(), images(4))
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)

    class Silent(nn.Module):
        def forward(self, x):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="NotImplementedError: no message"):
        check_model(Silent(), images(4))


def test_empty_data_are_told(images):
    dataset = images(4)
    empty = dataclasses.replace(dataset, train_x=dataset.train_x[:0])
    with pytest.raises(ConfigError, match="no train samples"):
        check_model(nn.Linear(4, 10), empty)


def test_nothing_is_left_changed(images):
    class Draws(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    model = nn.Sequential(nn.BatchNorm1d(4), KeyedDropout(0.5), Draws(), nn.Linear(4, 10))
    model[0].eval()
    modes = [m.training for m in model.modules()]
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    check_model(model, images(4))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
