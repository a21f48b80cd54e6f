import math

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.resnet import ResNet


def test_parameters(images):
    model = ResNet().build(images(3, 32, 32))
    stem = 3 * 16 * 9 + 32
    stage1 = 2 * (16 * 16 * 9 + 32)
    stage2 = 16 * 32 * 9 + 32 * 32 * 9 + 2 * 64 + 16 * 32 + 64
    stage3 = 32 * 64 * 9 + 64 * 64 * 9 + 2 * 128 + 32 * 64 + 128
    assert stem + stage1 + stage2 + stage3 + 650 == 78_042
    assert sum(p.numel() for p in model.parameters()) == 78_042


@pytest.mark.parametrize("blocks", [1, 3])
def test_six_n_plus_two_layers(images, blocks):
    model = ResNet(blocks=blocks).build(images(3, 32, 32))
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([n for n in layers if "shortcut" not in n]) == 6 * blocks + 2
    assert len([n for n in layers if "shortcut" in n]) == 2


def test_stages_halve_the_image(images):
    model = ResNet().build(images(1, 28, 28))
    sizes = []
    for name, layer in model.named_children():
        if name.startswith("stage"):
            layer.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sizes == [(16, 28, 28), (32, 14, 14), (64, 7, 7)]
    assert ResNet().build(images(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_block_whose_branch_is_zero_is_its_shortcut(images):
    model = ResNet().build(images(3, 8, 8))
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for name in ("stage1_block1", "stage2_block1"):
        block = model.get_submodule(name)
        nn.init.zeros_(block.norm2.weight)
        assert torch.equal(block(x), torch.relu(block.shortcut(x)))
    assert isinstance(model.stage1_block1.shortcut, nn.Identity)


def test_block_has_a_relu_between_its_convolutions(images):
    block = ResNet(widths=[8], groups=1).build(images(1, 4, 4)).stage1_block1
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    group = torch.nn.functional.group_norm
    inner = torch.relu(group(torch.conv2d(x, block.conv1.weight, padding=1), 1))
    outer = group(torch.conv2d(inner, block.conv2.weight, padding=1), 1)
    torch.testing.assert_close(block(x), torch.relu(outer + x))


def test_initialisation(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet().build(images(3, 32, 32))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * math.prod(layer.kernel_size)
            rms = layer.weight.square().mean().sqrt().item()
            tolerance = 4.417 / math.sqrt(2 * layer.weight.numel())
            assert abs(rms / math.sqrt(2 / fan_out) - 1) < tolerance
    assert model.output.weight.abs().max() <= 1 / 8


def test_bad_fields_are_named(images):
    with pytest.raises(ConfigError, match=r"model\.widths: 20 is not a multiple of .*groups=8"):
        ResNet(widths=[16, 20])
    with pytest.raises(ConfigError, match=r"model\.widths: \[\]"):
        ResNet(widths=[])
    with pytest.raises(ConfigError, match=r"^blocks: 0 is out of range"):
        ResNet(blocks=0)
    with pytest.raises(ConfigError, match="float images"):
        ResNet().build(images(64))
