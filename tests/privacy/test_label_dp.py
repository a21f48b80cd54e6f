"""Label DP: the channel's probabilities, exactly, and what it is put to."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from privacy.label_dp import LabelDP
from tests.helpers import classification, regression, tokens
from tests.privacy._dp import setting, within_four


def bind(epsilon=1.0, outputs=5, data=None, **values):
    data = data or classification(outputs=outputs)
    return LabelDP(epsilon=epsilon).bind(setting(data, LocalSGD(), **values))


def channel(protection, classes):
    """P[out | in] as it is drawn, `[in, out]`."""
    report = protection.channel.probability
    return [[report(out, label) for out in range(classes)] for label in range(classes)]


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 16.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_ratio_is_e_to_the_epsilon_and_no_more(epsilon, classes):
    table = channel(bind(epsilon, classes), classes)
    assert all(sum(row) == 1 for row in table)
    columns = list(zip(*table, strict=True))
    worst = max(max(column) / min(column) for column in columns)
    assert math.exp(epsilon) * (1 - 1e-6) < worst <= Fraction(math.exp(epsilon))


def test_the_frequencies_are_those_of_the_channel():
    """40,000 draws of each label: every cell within 4.417 standard deviations."""
    protection, count = bind(1.5, 4), 40_000
    table = np.array(channel(protection, 4), float)
    for label in range(4):
        drawn = protection.targets(label, torch.full((count,), label))
        found = np.bincount(drawn.numpy(), minlength=4) / count
        for cell, p in zip(found, table[label], strict=True):
            assert within_four(cell, p, math.sqrt(p * (1 - p) / count))


def test_labels_are_drawn_once():
    """Round after round the same, sample by sample; other clients and seeds draw others."""
    protection, y = bind(0.5), torch.arange(400) % 5
    first = protection.targets(3, y)
    assert torch.equal(first, protection.targets(3, y))
    assert not torch.equal(first, protection.targets(4, y))
    assert not torch.equal(first, bind(0.5, seed=1).targets(3, y))
    changed = y.clone()
    changed[7] = (y[7] + 1) % 5
    again = protection.targets(3, changed)
    assert torch.equal(torch.cat([first[:7], first[8:]]), torch.cat([again[:7], again[8:]]))


def test_it_is_charged_once_for_the_whole_run():
    protection = bind(1.25)
    (line,) = protection.releases(0, np.arange(0))
    protection.record(line)
    assert [list(protection.releases(r, np.arange(3))) for r in (1, 2)] == [[], []]
    for statement in (protection.statement(), protection.planned()):
        assert statement.epsilon == pytest.approx(1.25)
        assert (statement.delta, statement.unit) == (0.0, "label")
        assert statement.relation == "replace_one"
    assert protection.spent() == pytest.approx(1.25)


def test_what_has_no_class_is_refused():
    for data in (regression(), tokens()):
        with pytest.raises(ConfigError, match="one class per sample"):
            bind(data=data)
    with pytest.raises(ConfigError, match="devices"):
        bind(deployed=True)


def test_a_label_that_two_clients_hold_is_refused(tmp_path):
    words = ["privacy=label_dp", "partition=resampled", f"output.root={tmp_path}"]
    with pytest.raises(ConfigError, match="held by several clients"):
        Simulation(compose("base", words)).runtime  # noqa: B018
