import copy
import math

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.cnn import CNN
from fedsim.models.dropout import KeyedDropout, install, replace_dropout


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def two_layers(p=0.5):
    return nn.Sequential(KeyedDropout(p), nn.Tanh(), KeyedDropout(p))


def test_alone_and_stacked_draw_the_same():
    model, counts, block = two_layers(), [3, 5, 0, 1], 5
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 4, 2, generator=rng) for n in counts]
    stacked = torch.full((4 * block, 4, 2), math.nan)
    for k, x in enumerate(rows):
        stacked[k * block : k * block + len(x)] = x
    together = generators(10, 11, 12, 13)
    install(model, together, counts)
    out = model(stacked)
    for k, x in enumerate(rows):
        alone = generators(10 + k)
        install(model, alone, [len(x)])
        block_out = out[k * block : (k + 1) * block]
        assert torch.equal(block_out[: len(x)], model(x))
        assert not block_out[len(x) :].any()  # padding, not-a-number included, becomes 0
        # Both have advanced alike: the next step agrees as well.
        assert torch.equal(together[k].get_state(), alone[0].get_state())


def test_alone_and_stacked_agree_in_a_whole_model(images):
    dataset = images(3, 8, 8)
    model = CNN(channels=[4], hidden=[16, 8], dropout=0.3).build(dataset).double()
    x = dataset.train_x.double()
    install(model, generators(1, 2), [2, 3])
    together = model(torch.cat([x[:2], torch.zeros(1, 3, 8, 8).double(), x[2:5]]))
    install(model, generators(1), [2])
    torch.testing.assert_close(together[:2], model(x[:2]), rtol=1e-12, atol=1e-12)
    install(model, generators(2), [3])
    torch.testing.assert_close(together[3:], model(x[2:5]), rtol=1e-12, atol=1e-12)


def test_layers_and_clients_and_steps_draw_differently():
    layer, x = KeyedDropout(0.5), torch.ones(20, 20)
    install(layer, generators(1), [20])
    first, second = layer(x), layer(x)
    install(layer, generators(2), [20])
    assert not torch.equal(first, second)
    assert not torch.equal(first, layer(x))


def test_rate_and_scale():
    layer = KeyedDropout(0.2)
    install(layer, generators(0), [1000])
    y = layer(torch.full((1000, 100), 4.0))
    assert y.unique().tolist() == [0.0, 5.0]  # 4 / (1 - 0.2)
    n = y.numel()
    assert abs((y == 0).double().mean().item() - 0.2) < 4.417 * math.sqrt(0.2 * 0.8 / n)


def test_gradient_is_the_mask():
    layer = KeyedDropout(0.5)
    x = torch.ones(10, 10, requires_grad=True)
    install(layer, generators(0), [10])
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_same_masks_in_every_dtype():
    layer, masks = KeyedDropout(0.5), []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        install(layer, generators(0), [10])
        y = layer(torch.ones(10, 10, dtype=dtype))
        assert y.dtype is dtype
        masks.append((y != 0).tolist())
    assert masks[0] == masks[1] == masks[2]


def test_identity_in_evaluation_and_at_zero():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert KeyedDropout(0.5).eval()(x) is x
    assert KeyedDropout(0.0)(x) is x
    assert not KeyedDropout(1.0)(x).any()


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    model = two_layers()
    install(model, generators(0), [4])
    model(torch.ones(4, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_errors():
    layer = KeyedDropout(0.5)
    with pytest.raises(RuntimeError, match="no generators; call fedsim"):
        layer(torch.ones(2, 2))
    install(layer, generators(0, 1), [1, 3])
    with pytest.raises(RuntimeError, match=r"4 rows do not hold 2 blocks"):
        layer(torch.ones(4, 2))
    install(layer, generators(0, 1), [1, 1])
    with pytest.raises(RuntimeError, match=r"5 rows do not hold 2 blocks"):
        layer(torch.ones(5, 2))
    install(layer, [], [])
    with pytest.raises(RuntimeError, match="no generators"):
        layer(torch.ones(2, 2))
    with pytest.raises(ValueError, match="2 generators"):
        install(layer, generators(0, 1), [1])
    with pytest.raises(ValueError, match=r"\[-1\]"):
        install(layer, generators(0), [-1])
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="out of range"):
            KeyedDropout(p)


def test_replace_dropout_everywhere():
    shared = nn.Dropout(0.3)
    model = nn.Sequential(shared, nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4)), shared)
    model[1].eval()
    weight = model[1][0].weight
    assert replace_dropout(model) is model
    assert [(m.p, m.training) for m in model.modules() if isinstance(m, KeyedDropout)] == [
        (0.3, True),
        (0.4, False),
        (0.3, True),
    ]
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert model[1][0].weight is weight
    assert replace_dropout(nn.Dropout(0.1)).p == 0.1
    assert repr(model[0]) == "KeyedDropout(p=0.3)"


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout2d(0.1), nn.AlphaDropout(0.1), nn.RReLU(), nn.MultiheadAttention(4, 2, dropout=0.1)],
)
def test_other_random_layers_are_refused(layer):
    with pytest.raises(ConfigError, match=rf"layer '1' is a {type(layer).__name__}"):
        replace_dropout(nn.Sequential(nn.Identity(), layer))


def test_layers_without_dropout_inside_pass():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.LSTM(2, 2))
    assert replace_dropout(model) is model


def test_a_model_with_dropout_can_be_copied_before_a_step():
    model = two_layers()
    copied = copy.deepcopy(model)
    install(model, generators(0), [2])
    install(copied, generators(0), [2])
    assert torch.equal(model(torch.ones(2, 9)), copied(torch.ones(2, 9)))
