"""Every client holds all that it loads."""

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.partition.whole import Whole
from fedsim.simulation import Simulation


def test_each_client_holds_all_samples(labelled):
    dataset = labelled([0, 2, 2, 1, 0, 2])
    partition = Whole(num_clients=3).split(dataset, np.random.default_rng(0))
    assert partition.num_clients == 3
    for client in range(3):
        assert partition.indices(client).tolist() == [0, 1, 2, 3, 4, 5]
    assert partition.sizes(np.array([2, 0])).tolist() == [6, 6]
    assert partition.label_histogram(dataset.labels(), 4).tolist() == [[2, 1, 3, 0]] * 3
    assert not partition.transforms


def test_the_generator_has_no_say(labelled):
    dataset = labelled([0, 1, 2])
    rng = np.random.default_rng(0)
    Whole(num_clients=2).split(dataset, rng)
    assert rng.integers(10**9) == np.random.default_rng(0).integers(10**9)


def test_a_client_keeps_samples_of_its_own_to_evaluate_on():
    """The share is the same for all; which samples, each draws for itself."""
    words = ["partition=whole", "partition.num_clients=3", "partition.holdout=0.25"]
    words += ["participation=full"]
    runtime = Simulation(compose("quickstart", words)).runtime
    everything = np.arange(len(runtime.dataset.train_y))
    held = [set(runtime.samples(k, held_out=True).tolist()) for k in range(3)]
    for client, out in enumerate(held):
        kept = runtime.samples(client)
        assert sorted([*kept, *out]) == everything.tolist()
        assert len(out) == pytest.approx(0.25 * len(everything), abs=1)
    assert held[0] != held[1]


def test_there_is_at_least_one_client():
    with pytest.raises(ConfigError, match="num_clients"):
        compose("quickstart", ["partition=whole", "partition.num_clients=0"])
