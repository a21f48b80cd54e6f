import math

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.transformer import Transformer

SMALL = {"width": 8, "heads": 2}


def seeded(part, dataset, std=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = part.build(dataset).double()
        if std:  # the small initial weights would leave attention nearly uniform
            for p in model.parameters():
                nn.init.normal_(p, std=std)
    return model


@pytest.mark.parametrize(("tied", "head"), [(False, 128 * 65 + 65), (True, 0)])
def test_parameters(text, tied, head):
    model = Transformer(tied=tied).build(text())
    embeddings = 65 * 128 + 32 * 128
    attention = 128 * 384 + 384 + 128 * 128 + 128
    mlp = 128 * 512 + 512 + 512 * 128 + 128
    expected = embeddings + 2 * (attention + mlp + 2 * 256) + 256 + head
    assert expected == 409_216 + head
    assert sum(p.numel() for p in model.parameters()) == expected


def test_shapes(text):
    tokens = torch.zeros(3, 32, dtype=torch.int64)
    assert Transformer(**SMALL).build(text())(tokens).shape == (3, 32, 65)
    assert Transformer(**SMALL).build(text())(tokens[:, :5]).shape == (3, 5, 65)
    for pool in ("mean", "last"):
        part = Transformer(**SMALL, pool=pool)
        assert part.build(text(outputs=4, per_position=False))(tokens).shape == (3, 4)


def test_causal(text):
    model = seeded(Transformer(**SMALL), text(), std=0.5)
    x = text().train_x
    changed = x.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 65
    z, z_changed = model(x), model(changed)
    assert torch.equal(z[:, :10], z_changed[:, :10])
    assert (z[:, 10:] != z_changed[:, 10:]).any(-1).all()


def test_position_matters(text):
    model = seeded(Transformer(**SMALL), text(), std=0.5)
    z = model(torch.zeros(1, 32, dtype=torch.int64))
    assert not torch.allclose(z[0, 0], z[0, 1])


def test_attention_against_its_definition(text):
    block = seeded(Transformer(**SMALL), text(), std=0.5).blocks[0]
    h = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).double()
    q, k, v = block.query_key_value(h).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        scores[:, ~torch.ones(5, 5, dtype=torch.bool).tril()] = -math.inf
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = block.attention_out(torch.cat(heads, -1))
    torch.testing.assert_close(block._attend(h), expected, rtol=1e-12, atol=1e-12)


def test_pooling(text):
    dataset = text(outputs=4, per_position=False)
    model = seeded(Transformer(**SMALL, pool="mean"), dataset, std=0.5)
    hidden = []
    model.norm.register_forward_hook(lambda m, i, out: hidden.append(out))
    z = model(dataset.train_x)
    torch.testing.assert_close(z, model.head(hidden[0].sum(1) / 32))
    model.pool = "last"
    torch.testing.assert_close(model(dataset.train_x), model.head(hidden[0][:, 31]))


def test_tied_head_shares_the_embedding(text):
    model = seeded(Transformer(**SMALL, tied=True), text())
    assert model.head.weight is model.tokens.weight
    assert model.head.bias is None
    model(text().train_x).sum().backward()
    assert model.tokens.weight.grad is not None


def test_initialisation(text):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer().build(text())
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            std = 0.01 if name.endswith("_out") else 0.02  # 0.02 / sqrt(2 * 2 layers)
            rms = layer.weight.square().mean().sqrt().item()
            assert abs(rms / std - 1) < 4.417 / math.sqrt(2 * layer.weight.numel()), name
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()


def test_vocabulary(text):
    # An output may be a token that no input has shown yet, where outputs are next tokens.
    assert Transformer().build(text(tokens=60, outputs=65)).tokens.num_embeddings == 65
    pooled = Transformer(pool="mean")
    few_classes = text(tokens=60, outputs=70, per_position=False)
    assert pooled.build(few_classes).tokens.num_embeddings == 60
    assert Transformer(vocabulary=99).build(text()).tokens.num_embeddings == 99
    with pytest.raises(ConfigError, match=r"model\.vocabulary: 64 is too small.* is 64;.*=65"):
        Transformer(vocabulary=64).build(text())


def test_fields_that_do_not_go_together(text, images):
    with pytest.raises(ConfigError, match=r"model\.width: 10 .*heads=4; .*model\.width=12"):
        Transformer(width=10)
    with pytest.raises(ConfigError, match=r"model\.tied: true needs model\.pool=none"):
        Transformer(tied=True, pool="last")
    with pytest.raises(ConfigError, match=r"65 outputs and 70 tokens"):
        Transformer(tied=True).build(text(tokens=70))
    with pytest.raises(ConfigError, match=r"model\.pool: none .* type model\.pool=last"):
        Transformer().build(text(per_position=False))
    with pytest.raises(ConfigError, match=r"model\.pool: mean .* type model\.pool=none"):
        Transformer(pool="mean").build(text())
    with pytest.raises(ConfigError, match="int64 tokens"):
        Transformer().build(images(8))
    with pytest.raises(ConfigError, match=r"^pool: 'max' is not allowed"):
        Transformer(pool="max")
