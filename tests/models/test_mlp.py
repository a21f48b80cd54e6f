import math

import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP


@pytest.mark.parametrize(
    ("hidden", "parameters"),
    [
        ([200], 159_010),
        ([200, 200], 199_210),  # the 2NN of McMahan et al.
        ([], 7_850),
    ],
)
def test_parameters(images, hidden, parameters):
    model = MLP(hidden=hidden).build(images(1, 28, 28))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("activation", "value"),
    [
        ("relu", 0.0),
        ("tanh", math.tanh(-1.0)),
        ("gelu", -0.5 * (1 + math.erf(-1 / math.sqrt(2)))),
        ("softplus", math.log1p(math.exp(-1.0))),
    ],
)
def test_activation(images, activation, value):
    model = MLP(hidden=[1], activation=activation).build(images(1, outputs=1)).double()
    for p in model.parameters():
        torch.nn.init.ones_(p) if p.ndim == 2 else torch.nn.init.zeros_(p)
    assert model(torch.tensor([[-1.0]]).double()).item() == pytest.approx(value, rel=1e-12)


def test_every_hidden_layer_is_followed_by_its_activation(images):
    model = MLP(hidden=[3, 4]).build(images(2, 2))
    names = [name for name, _ in model.named_children()]
    assert names == ["flatten", "hidden1", "activation1", "hidden2", "activation2", "output"]


@pytest.mark.parametrize("fields", [{"hidden": [0]}, {"hidden": 5}, {"activation": "selu"}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ConfigError, match=f"^{next(iter(fields))}"):
        MLP(**fields)


def test_tokens_are_refused(text):
    with pytest.raises(ConfigError, match="model=transformer"):
        MLP().build(text())
