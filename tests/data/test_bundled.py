import numpy as np
import pytest
import torch
from sklearn import datasets

from fedsim.data.bundled import Bundled
from fedsim.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "train", "test", "width", "outputs"),
    [
        ("digits", 1347, 450, 64, 10),
        ("breast_cancer", 426, 143, 30, 2),
        ("wine", 133, 45, 13, 3),
        ("diabetes", 331, 111, 10, 1),
    ],
)
def test_shapes(name, train, test, width, outputs):
    data = Bundled(name=name).load()
    assert data.train_x.shape == (train, width) and data.test_x.shape == (test, width)
    assert data.train_x.dtype == data.test_x.dtype == torch.float32
    assert data.num_outputs == outputs
    if name == "diabetes":
        assert data.task == "regression" and data.train_y.shape == (train, 1)
        assert data.train_y.dtype == torch.float32 and data.test_y.shape == (test, 1)
    else:
        assert data.train_y.dtype == torch.int64 and len(data.class_names) == outputs
        every = np.bincount(getattr(datasets, f"load_{name}")().target)
        in_test = data.test_y.bincount().numpy()
        assert (np.abs(in_test - every * 0.25) < 1).all()
        assert (in_test + data.train_y.bincount().numpy() == every).all()


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes"])
def test_tables_are_standardised_by_their_train_part(name):
    data = Bundled(name=name).load()
    assert data.train_x.mean(0).abs().max() < 1e-5
    assert (data.train_x.std(0, correction=0) - 1).abs().max() < 1e-5
    assert data.test_x.mean(0).abs().max() > 1e-3


def test_digits_are_sixteenths():
    data = Bundled().load()
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    assert (data.train_x * 16 == (data.train_x * 16).round()).all()
    assert Bundled(image=True).load().train_x[5, 0, 2, 3] == data.train_x[5, 2 * 8 + 3]


def test_parity_is_of_the_same_samples():
    digits, parity = Bundled().load(), Bundled(labels="parity").load()
    assert torch.equal(parity.train_y, digits.train_y % 2)
    assert torch.equal(parity.test_y, digits.test_y % 2)
    assert torch.equal(parity.test_x, digits.test_x)
    assert parity.num_outputs == 2 and parity.class_names == ("even", "odd")
    assert (parity.columns["digit"] == digits.train_y.numpy()).all()


def test_diabetes_scale_is_kept():
    data = Bundled(name="diabetes").load()
    target = data.columns["target"]
    back = data.train_y[:, 0].numpy() * target.std() + target.mean()
    assert back == pytest.approx(target, rel=1e-5)
    assert set(target) <= set(datasets.load_diabetes().target)


def test_split_seed_changes_the_test_samples():
    first, again, other = (Bundled(name="wine", split_seed=s).load() for s in (0, 0, 1))
    assert torch.equal(first.train_x, again.train_x)
    assert (
        not torch.equal(first.train_y, other.train_y) or first.train_x[0, 0] != other.train_x[0, 0]
    )


@pytest.mark.parametrize("fields", [{"image": True}, {"labels": "parity"}])
def test_digit_options_are_for_digits(fields):
    with pytest.raises(ConfigError, match=r"^(image|labels): .*data=wine"):
        Bundled(name="wine", **fields)
