import math

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.cnn import CNN
from fedsim.models.dropout import KeyedDropout

Z = 4.417  # two-sided false-alarm rate 1e-5 of a normal deviate


@pytest.mark.parametrize(
    ("shape", "hidden", "dropout", "outputs", "parameters"),
    [
        ((3, 32, 32), [128], 0.0, 10, 273_706),  # SVHN
        ((3, 32, 32), [256, 64], 0.0, 10, 551_786),  # CIFAR-10
        ((3, 32, 32), [512, 256], 0.2, 100, 1_216_260),  # CIFAR-100
        ((3, 32, 32), [512, 256], 0.2, 10, 1_193_130),  # CINIC-10
        ((1, 28, 28), [128], 0.0, 10, 320 + 9_248 + (7 * 7 * 32 + 1) * 128 + 1_290),
        ((1, 8, 8), [128], 0.0, 10, 320 + 9_248 + (2 * 2 * 32 + 1) * 128 + 1_290),
    ],
)
def test_parameters_and_shapes(images, shape, hidden, dropout, outputs, parameters):
    model = CNN(hidden=hidden, dropout=dropout).build(images(*shape, outputs=outputs))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.zeros(5, *shape)).shape == (5, outputs)
    dropouts = [m.p for m in model if isinstance(m, KeyedDropout)]
    assert dropouts == [dropout] * (len(hidden) + 1 if dropout else 0)


def test_order_of_the_layers(images):
    model = CNN(hidden=[8, 4], dropout=0.2).build(images(3, 32, 32))
    kinds = [type(m) for m in model]
    block = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    dense = [KeyedDropout, nn.Linear, nn.ReLU]
    assert kinds == [*block, *block, nn.Flatten, *dense, *dense, KeyedDropout, nn.Linear]


def test_initialisation(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CNN(hidden=[512, 256]).build(images(3, 32, 32))
    layers = [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        fan_in, n = layer.weight[0].numel(), layer.weight.numel()
        std = math.sqrt(2 / fan_in)
        # Of n normal draws the root mean square deviates by 1 / sqrt(2n), relative to std.
        rms = layer.weight.square().mean().sqrt().item()
        assert abs(rms / std - 1) < Z / math.sqrt(2 * n)
        assert abs(layer.weight.mean().item()) < Z * std / math.sqrt(n)
        # A uniform distribution would stop at sqrt(3) std.
        assert layer.weight.abs().max() > 2 * std
        assert not layer.bias.any()
    bound = 1 / math.sqrt(256)
    output = layers[-1]
    # Of n uniform draws the root mean square deviates by sqrt(0.2 / n), relative to std.
    rms = output.weight.square().mean().sqrt().item()
    assert abs(rms / (bound / math.sqrt(3)) - 1) < Z * math.sqrt(0.2 / output.weight.numel())
    assert output.weight.abs().max() <= bound
    assert 0 < output.bias.abs().max() <= bound


def test_hand_computed_value(images):
    model = CNN(channels=[1], hidden=[1]).build(images(1, 2, 2, outputs=1))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        # Every 3x3 window of a 2x2 image with padding 1 sums all four pixels: 10 + bias 1 = 11;
        # the pool keeps 11; then 11 + 1 twice.
        assert model(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == 13.0


def test_too_small_images_are_refused(images):
    CNN().build(images(1, 4, 4))
    with pytest.raises(ConfigError, match=r"model\.channels: 2 blocks .* 4x4.*gives 4x3"):
        CNN().build(images(1, 4, 3))


def test_wrong_inputs_are_refused(images, text):
    with pytest.raises(ConfigError, match=r"float32 inputs \[28, 28\].*model=mlp"):
        CNN().build(images(28, 28))
    with pytest.raises(ConfigError, match=r"int64 inputs \[32\]"):
        CNN().build(text())


@pytest.mark.parametrize("fields", [{"channels": [0]}, {"hidden": [-1]}, {"dropout": 1.0}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ConfigError, match=f"^{next(iter(fields))}: .* out of range"):
        CNN(**fields)
