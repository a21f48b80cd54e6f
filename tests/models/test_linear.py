import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.models.linear import LinearModel


def test_hand_computed_value(images):
    model = LinearModel().build(images(1, 1, 2, outputs=2))
    with torch.no_grad():
        model.output.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
        model.output.bias.copy_(torch.tensor([0.5, -1.0]))
        z = model(torch.tensor([[[[10.0, 1.0]]]]))
    assert z.tolist() == [[12.5, 25.0]]


def test_parameters_and_zero_start(images):
    model = LinearModel().build(images(1, 28, 28))
    assert sum(p.numel() for p in model.parameters()) == 7_850
    assert all(not p.any() for p in model.parameters())
    assert LinearModel(zero_init=False).build(images(4)).output.weight.abs().min() > 0


def test_default_start_is_bounded_by_the_inputs(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = LinearModel(zero_init=False).build(images(100)).output
    assert 0.09 < output.weight.abs().max() <= 0.1


def test_regression_has_one_output_per_column(images):
    model = LinearModel().build(images(5, outputs=3, task="regression"))
    assert model(torch.zeros(7, 5)).shape == (7, 3)


def test_tokens_are_refused(text):
    with pytest.raises(ConfigError, match=r"int64 inputs \[32\].*model=transformer"):
        LinearModel().build(text())
