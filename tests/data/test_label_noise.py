"""Label noise: how many, which, never the test set; the same draws for the same seed."""

import numpy as np
import pytest
import torch

from fedsim.config import build_part, compose
from fedsim.data.bundled import Bundled
from fedsim.data.label_noise import LabelNoise
from fedsim.errors import ConfigError


@pytest.mark.parametrize(("labels", "classes"), [("parity", 2), ("digit", 10)])
def test_a_share_of_the_train_labels_is_wrong(labels, classes):
    source = Bundled(labels=labels)
    clean, noisy = source.load(), LabelNoise(source=source, rate=0.3).load()
    wrong = (noisy.train_y != clean.train_y).numpy()
    assert wrong.mean() == pytest.approx(0.3, abs=0.04)  # 1,347 draws: three standard deviations
    assert torch.equal(noisy.test_y, clean.test_y)
    assert torch.equal(noisy.train_x, clean.train_x)
    assert noisy.train_y.dtype == torch.int64
    assert noisy.columns["clean_label"].tolist() == clean.train_y.tolist()
    # Every other class is as likely as the next.
    shift = ((noisy.train_y - clean.train_y) % classes).numpy()
    counts = np.bincount(shift[wrong], minlength=classes)
    assert counts[0] == 0
    expected = wrong.sum() / (classes - 1)
    assert np.abs(counts[1:] - expected).max() < 4 * expected**0.5


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_none_and_all(rate, share):
    source = Bundled()
    clean, noisy = source.load(), LabelNoise(source=source, rate=rate).load()
    assert (noisy.train_y != clean.train_y).double().mean().item() == share


def test_the_draws_are_keyed():
    labels = [LabelNoise(noise_seed=seed).load().train_y for seed in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_the_part_follows_the_scenario_s_seed():
    part = build_part(
        compose("base", ["data=label_noise", "data.noise_seed=${seed}", "seed=7"]), "data"
    )
    assert part.noise_seed == 7
    assert part.load().class_names == ("even", "odd")
    other = compose("base", ["data=label_noise", "data.source.labels=digit", "data.rate=0.1"])
    assert build_part(other, "data").load().num_outputs == 10


def test_numbers_have_no_wrong_class():
    with pytest.raises(ConfigError, match="'diabetes' has the task regression"):
        LabelNoise(source=Bundled(name="diabetes")).load()


def test_the_source_is_a_data_part():
    with pytest.raises(ConfigError, match="source: 'digits' is no data part"):
        LabelNoise(source="digits")
