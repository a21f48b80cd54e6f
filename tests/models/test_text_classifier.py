import pytest
import torch
from torch import nn

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.text_classifier import TextClassifier
from tests.helpers import Dataset, distance, make_runtime, run

SMALL = {"width": 8, "heads": 2}


def seeded(part, dataset, std=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = part.build(dataset).double()
        for p in model.parameters():
            nn.init.normal_(p, std=std)
    return model


def sentences(n=100, length=6, tokens=9):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(1, tokens, (n + 20, length), generator=rng)
    x[torch.arange(length) >= 1 + torch.arange(n + 20).unsqueeze(1) % length] = 0
    y = (x == 3).any(1).long()
    return Dataset(
        name="made_up",
        task="classification",
        train_x=x[:n],
        train_y=y[:n],
        test_x=x[n:],
        test_y=y[n:],
        num_outputs=2,
        num_tokens=12,
    )


def test_padding_is_as_if_it_were_not_there():
    data = sentences()
    model = seeded(TextClassifier(**SMALL, layers=2), data)
    x = torch.tensor([[3, 1, 4, 0, 0, 0]])
    torch.testing.assert_close(model(x), model(x[:, :3]), rtol=1e-12, atol=1e-12)
    open_ = seeded(TextClassifier(**SMALL, layers=2, padding=None), data)
    assert not torch.allclose(open_(x), open_(x[:, :3]))


def test_a_sentence_of_padding_alone_counts_in_full():
    model = seeded(TextClassifier(**SMALL), sentences())
    nothing = torch.zeros(1, 6, dtype=torch.int64)
    assert model(nothing).isfinite().all()
    everything = seeded(TextClassifier(**SMALL, padding=None), sentences())
    torch.testing.assert_close(model(nothing), everything(nothing), rtol=1e-12, atol=1e-12)


def test_every_position_sees_all_others():
    model = seeded(TextClassifier(**SMALL, padding=None), sentences())
    hidden = []
    model.norm.register_forward_hook(lambda m, i, out: hidden.append(out))
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for last in (6, 7):
        x[0, 5] = last
        model(x)
    assert (hidden[0] != hidden[1]).any(-1).all()


def test_a_bag_of_embeddings_by_hand():
    model = seeded(TextClassifier(**SMALL, layers=0), sentences())
    x = torch.tensor([[3, 1, 4, 0, 0, 0]])
    h = model.tokens.weight[[3, 1, 4]] + model.positions.weight[:3]
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    h = (h * model.norm.weight + model.norm.bias).mean(0)
    expected = model.head.weight @ h + model.head.bias
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-12, atol=1e-12)


def test_rows_come_from_what_the_data_part_says_not_from_the_samples():
    assert TextClassifier(**SMALL).build(sentences()).tokens.num_embeddings == 12
    with pytest.raises(ConfigError, match=r"model\.vocabulary: 8 is too small"):
        TextClassifier(**SMALL, vocabulary=8).build(sentences())


def test_fields_that_do_not_go_together(text, images):
    with pytest.raises(ConfigError, match=r"model\.width: 10 .*heads=4"):
        TextClassifier(width=10)
    with pytest.raises(ConfigError, match=r"one target per position.*model=transformer"):
        TextClassifier().build(text())
    with pytest.raises(ConfigError, match="int64 tokens"):
        TextClassifier().build(images(8))


@pytest.mark.parametrize("layers", [0, 1])
def test_stacked_clients_train_as_each_alone(layers):
    part = TextClassifier(**SMALL, layers=layers, dropout=0.1)
    work = LocalSGD(lr=0.5, batch_size=4)
    make = lambda: make_runtime(sentences(), part, work=work)  # noqa: E731
    engine = Cohort(chunk=3, plan="auto")
    assert engine.grid(make()).plan == "rules"
    expected, _ = run(make(), InProcess(), rounds=3)
    got, _ = run(make(), engine, rounds=3)
    assert distance(got, expected) < 1e-5
    assert distance(expected, make().initial_params()) > 1e-2
