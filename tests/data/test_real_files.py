"""The published files, where FEDSIM_DATA names a folder of them: published counts and checksums."""

import hashlib
import time

import numpy as np
import pytest
import torch

from fedsim.data.adult import Adult
from fedsim.data.adult_binary import AdultBinary
from fedsim.data.california import CaliforniaHousing
from fedsim.data.idx import Idx
from fedsim.data.medmnist import MedMnist
from fedsim.data.sentence_polarity import SentencePolarity
from fedsim.data.text import Text
from fedsim.errors import DataError


def load(part):
    try:
        return part.load()
    except DataError as error:
        if "is missing" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("mnist", "6bbc9ace898e44ae57da46a324031adb", "2646ac647ad5339dbf082846283269ea"),
        ("fashion_mnist", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "8181f5470baa50b63fa0f6fddb340f0a"),
    ],
)
def test_idx_is_read_without_loss(real_root, name, train, test):
    data = load(Idx(name=name, root=real_root))
    assert data.train_x.shape == (60000, 1, 28, 28) and data.test_x.shape == (10000, 1, 28, 28)
    for x, md5 in ((data.train_x, train), (data.test_x, test)):
        # Back to the bytes of the published file, header included.
        header = bytes((0, 0, 8, 3)) + np.array([len(x), 28, 28], ">u4").tobytes()
        pixels = (x * 255).round().to(torch.uint8).numpy().tobytes()
        assert hashlib.md5(header + pixels, usedforsecurity=False).hexdigest() == md5
    counts = data.train_y.bincount().tolist()
    if name == "mnist":
        assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    else:
        assert counts == [6000] * 10 and data.test_y.bincount().tolist() == [1000] * 10


def test_fashion_mnist_is_not_taken_for_mnist(real_root):
    load(Idx(name="fashion_mnist", root=real_root))
    with pytest.raises(DataError, match="is fashion_mnist, not mnist"):
        Idx(name="mnist", root=f"{real_root}/fashion_mnist").load()


def test_fashion_mnist_loads_in_about_a_second(real_root):
    part = Idx(name="fashion_mnist", root=real_root)
    load(part)
    start = time.process_time()
    part.load()
    assert time.process_time() - start < 4.0  # 1 s on an idle core


def test_normalised_fashion_mnist(real_root):
    data = load(Idx(name="fashion_mnist", root=real_root, normalise=True))
    # The mean and standard deviation that everybody quotes: 0.2860, 0.3530.
    assert data.train_x.min().item() == pytest.approx(-0.2860 / 0.3530, abs=1e-3)
    assert data.train_x.max().item() == pytest.approx((1 - 0.2860) / 0.3530, abs=1e-3)


def test_retinamnist(real_root):
    data = load(MedMnist(root=real_root))
    assert data.train_x.shape == (1080, 3, 28, 28)
    assert data.train_y.bincount().tolist() == [486, 128, 206, 194, 66]
    assert data.test_y.bincount().tolist() == [174, 46, 92, 68, 20]
    more = load(MedMnist(root=real_root, with_val=True, binary=True))
    assert len(more.train_y) == 1200 and more.test_y.bincount().tolist() == [174, 226]


def test_adult(real_root):
    data = load(Adult(root=real_root))
    assert data.train_x.shape == (32561, 108) and data.test_x.shape == (16281, 108)
    assert data.train_y.sum() == 7841 and data.test_y.sum() == 3846
    text = ("workclass", "occupation", "native_country")
    gaps = np.any([data.columns[name] == "?" for name in text], axis=0)
    assert gaps.sum() == 2399
    assert len(np.unique(data.columns["native_country"])) == 42
    assert (data.train_x[:, 6:].sum(1) == 8).all()


def test_adult_binary(real_root):
    """The layout of LIBSVM's a9a, whose rows have 13.87 ones in the mean."""
    data = load(AdultBinary(root=real_root))
    assert data.train_x.shape == (32561, 123) and data.test_x.shape == (16281, 123)
    assert set(data.train_x.unique().tolist()) == {0.0, 1.0}
    assert abs(float(data.train_x.sum(1).mean()) - 13.87) < 0.005
    sizes = (5, 8, 5, 16, 5, 7, 14, 6, 5, 2, 2, 2, 5, 41)
    for block in data.train_x.split(sizes, dim=1):
        assert float(block.sum(1).max()) == 1
        assert float(block.mean(0).min()) > 0
    assert data.train_y.sum() == 7841


def test_california_housing(real_root):
    data = load(CaliforniaHousing(root=real_root))
    assert data.train_x.shape == (16512, 8) and data.test_x.shape == (4128, 8)
    everywhere = load(CaliforniaHousing(root=real_root, test_fraction=1e-5, ocean_proximity=True))
    assert everywhere.train_x.shape == (20639, 13)
    names, counts = np.unique(everywhere.columns["ocean_proximity"], return_counts=True)
    published = {
        "<1H OCEAN": 9136,
        "INLAND": 6551,
        "NEAR OCEAN": 2658,
        "NEAR BAY": 2290,
        "ISLAND": 5,
    }
    missing = {n: published[n] - c for n, c in zip(names.tolist(), counts.tolist(), strict=True)}
    assert sorted(missing.values()) == [0, 0, 0, 0, 1]  # one sample is the test part
    assert everywhere.columns["target"].max() == 500001


def test_shakespeare(real_root):
    data = load(Text(root=real_root))
    assert data.num_outputs == 65 and data.train_x.shape[1] == 80
    # 299 speakers say something (four more headings have no text), 256 of them 81 characters.
    assert len(np.unique(data.columns["speaker"])) == 256
    start = "Before we proceed any further, hear me speak.\nYou are all resolved rather to die"
    assert "".join(data.class_names[c] for c in data.train_x[0].tolist()) == start
    assert data.columns["speaker"][0] == "First Citizen"


def test_shakespeare_roles(real_root):
    public, private = (load(Text(root=real_root, roles=roles)) for roles in ("public", "private"))
    # One of the 65 characters is said by private roles only, and only once in their train windows.
    assert public.num_outputs == private.num_outputs == 64
    assert not (public.train_x == 63).any() and (private.train_x == 63).sum() == 1
    count = [len(np.unique(data.columns["speaker"])) for data in (public, private)]
    assert count == [134, 122]


def test_sentence_polarity(real_root):
    data = load(SentencePolarity(root=real_root))
    assert len(data.train_x) + len(data.test_x) == 10662
    assert data.train_y.sum() + data.test_y.sum() == 5331
    public, private = (
        load(SentencePolarity(root=real_root, split=s)) for s in ("public", "private")
    )
    assert [len(d.train_x) for d in (public, private)] == [2603, 5963]
    assert ((data.train_x != 0).all(1)).float().mean() < 0.01  # 48 words are nearly all sentences
