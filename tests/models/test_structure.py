"""What strategies learn of a model: layers in order, kinds, the names of their tensors."""

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.resnet import ResNet
from fedsim.models.structure import head, layers_of
from fedsim.models.transformer import Transformer
from tests.helpers import classification, make_runtime, tokens


class Own(nn.Module):
    """A parameter and buffers of the module itself, beside those of layers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.body = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.BatchNorm1d(1))
        self.out = nn.Linear(1, 1)


def test_layers_by_hand():
    layers = layers_of(Own())
    assert [(layer.path, layer.kind) for layer in layers] == [
        ("", Own),
        ("body.0", nn.Conv1d),
        ("body.1", nn.BatchNorm1d),
        ("out", nn.Linear),
    ]
    assert layers[0].names == ("scale", "shift")
    assert layers[1].names == ("body.0.weight",)
    assert layers[2].parameters == ("body.1.weight", "body.1.bias")
    running = ("running_mean", "running_var", "num_batches_tracked")
    assert layers[2].buffers == tuple(f"body.1.{name}" for name in running)


@pytest.mark.parametrize(
    ("dataset", "part"),
    [
        (classification(shape=(1, 8, 8)), ResNet(widths=[4, 8], groups=2)),
        (tokens(), Transformer(width=4, heads=2, layers=1, tied=True)),
        (classification(), Own),
    ],
)
def test_names_are_those_of_the_models_params(dataset, part):
    runtime = make_runtime(dataset, part)
    names = {name for layer in layers_of(runtime.model) for name in layer.names}
    assert names == set(runtime.initial_params())


def test_heads_are_the_last_layers_with_parameters():
    layers = layers_of(Own())
    assert head(layers, 0) == set()
    assert head(layers, 1) == {"out.weight", "out.bias"}
    assert head(layers, 2) == {"out.weight", "out.bias", *layers[2].names}
    assert head(layers, 4) == {name for layer in layers for name in layer.names}
    with pytest.raises(ConfigError, match=r"head_layers: 5, but the model has 4"):
        head(layers, 5)


def test_a_layer_of_buffers_alone_is_no_head():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2, affine=False))
    assert len(layers_of(model)) == 2
    assert head(layers_of(model), 1) == {"0.weight", "0.bias"}


def test_a_tied_head_is_the_embedding_that_it_shares():
    dataset = tokens()
    model = make_runtime(dataset, Transformer(width=4, heads=2, layers=1, tied=True)).model
    assert head(layers_of(model), 1) == {"tokens.weight"}
