"""What holds for every scheme: complete, fixed by the generator, well-formed."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedsim.partition.base import PartitionPart
from fedsim.partition.dirichlet import Dirichlet
from fedsim.partition.dirichlet_client import DirichletClient
from fedsim.partition.fedau import FedAUPartition
from fedsim.partition.iid import Iid
from fedsim.partition.natural import Natural
from fedsim.partition.noise import Noise
from fedsim.partition.pathological import Pathological
from fedsim.partition.quantity import Quantity
from fedsim.partition.resampled import Resampled
from fedsim.partition.rotation import Rotation
from fedsim.partition.shards import Shards
from fedsim.partition.whole import Whole
from fedsim.parts import field_types

SCENARIOS = Path(__file__).parents[2] / "scenarios" / "partition"

EXHAUSTIVE = [
    Iid(num_clients=13),
    Dirichlet(num_clients=13, alpha=0.3),
    Dirichlet(num_clients=13, alpha=0.3, self_balancing=True),
    DirichletClient(num_clients=13, alpha=0.5),
    DirichletClient(num_clients=13, alpha=0.1, form="symmetric"),
    FedAUPartition(num_clients=13),
    Shards(num_clients=13, shards_per_client=3),
    Pathological(num_clients=13),
    Pathological(num_clients=13, choice="cyclic"),
    Quantity(num_clients=13),
    Quantity(num_clients=13, law="dirichlet"),
    Natural(),
    Natural(num_clients=13),
    Rotation(num_clients=13),
    Noise(num_clients=13),
]
ALL = [*EXHAUSTIVE, Resampled(num_clients=13, samples_per_client=60)]
WELL_FORMED = [*ALL, Whole(num_clients=13)]  # which draws nothing, and keeps the data's order


def name(part):
    return repr(part)


@pytest.fixture
def dataset(labelled):
    # Ten unbalanced classes with gaps between the labels, 500 samples, 29 users.
    draw = np.random.default_rng(5)
    labels = 3 * draw.choice(10, 500, p=np.arange(1, 11) / 55)
    users = draw.integers(29, size=500)
    return labelled(labels, x=torch.zeros(500, 1, 4, 4), columns={"user": users})


@pytest.mark.parametrize("part", EXHAUSTIVE, ids=name)
def test_every_sample_is_used_exactly_once(part, dataset):
    partition = part.split(dataset, np.random.default_rng(0))
    used = np.concatenate([partition.indices(k) for k in range(partition.num_clients)])
    assert np.sort(used).tolist() == list(range(500))


@pytest.mark.parametrize("part", WELL_FORMED, ids=name)
def test_sizes_and_indices_agree_and_nobody_is_empty(part, dataset):
    partition = part.split(dataset, np.random.default_rng(0))
    assert partition.num_clients == part.num_clients or part.num_clients is None
    clients = np.arange(partition.num_clients)
    sizes = partition.sizes(clients[::-1])[::-1]
    assert sizes.dtype == np.int64 and partition.indices(0).dtype == np.int64
    assert sizes.tolist() == [len(partition.indices(k)) for k in clients]
    assert sizes.min() >= 1


@pytest.mark.parametrize("part", ALL, ids=name)
def test_the_generator_decides_and_nothing_else(part, dataset):
    def held(seed):
        partition = part.split(dataset, np.random.default_rng(seed))
        return [partition.indices(k).tolist() for k in range(partition.num_clients)]

    assert held(1) == held(1)
    assert held(1) != held(2)


@pytest.mark.parametrize("part", ALL, ids=name)
def test_a_clients_samples_are_in_no_order_of_label(part, dataset):
    # Any prefix must be a fair sample. Grouped by label, a client of c classes has c - 1 changes of
    # label between neighbours; shuffled, many more.
    partition = part.split(dataset, np.random.default_rng(0))
    labels = dataset.labels()
    rows = [labels[partition.indices(k)] for k in range(partition.num_clients)]
    changes = sum(int(np.count_nonzero(np.diff(row))) for row in rows)
    grouped = sum(len(np.unique(row)) - 1 for row in rows)
    assert changes > 1.3 * grouped


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_lists_every_key_with_a_value_the_part_accepts(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    keys = dict(OmegaConf.to_container(OmegaConf.load(path)))
    module, _, cls = keys.pop("_target_").rpartition(".")
    part_class = getattr(importlib.import_module(module), cls)
    assert issubclass(part_class, PartitionPart)
    assert list(keys) == list(field_types(part_class))
    assert part_class(**keys) == part_class()


def test_every_scheme_has_its_yaml():
    names = {path.stem for path in SCENARIOS.glob("*.yaml")}
    assert names == {
        *("iid", "dirichlet", "dirichlet_client", "fedau", "shards", "pathological", "quantity"),
        *("natural", "rotation", "noise", "resampled", "whole"),
    }
