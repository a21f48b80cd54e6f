"""Bags: who lies with whom, what is averaged, and that nothing of a single response is left."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.data.bags import Bags
from fedsim.data.bundled import Bundled
from fedsim.data.dataset import DataPart, Dataset
from fedsim.data.label_noise import LabelNoise
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Made(DataPart):
    """Samples whose input is their own number, with responses that are unlike all else."""

    count: int = 23
    task: str = "regression"

    def load(self) -> Dataset:
        number = torch.arange(self.count, dtype=torch.float32)
        mixed = 7 * number % 23
        y = (1000.0 + 7 * mixed**2)[:, None] if self.task == "regression" else number.long() % 3
        return Dataset(
            name="made",
            task=self.task,
            train_x=torch.stack([number, -number / 100], 1),
            train_y=y,
            test_x=torch.zeros(4, 2),
            test_y=y[:4],
            num_outputs=1 if self.task == "regression" else 3,
            columns={
                "target": y.numpy().reshape(-1).copy(),
                "site": np.array([f"s{i % 4}" for i in range(self.count)]),
                "place": number.numpy().astype(np.float64),
            },
        )


def members(data: Dataset) -> list[list[int]]:
    sizes = data.train_y[:, -1].int().tolist()
    return [x[:s, 0].int().tolist() for x, s in zip(data.train_x, sizes, strict=True)]


@pytest.mark.parametrize("rest", ["drop", "short"])
@pytest.mark.parametrize("assign", ["random", "features", "responses"])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_bag_holds_the_mean_of_its_samples(task, assign, rest):
    part = Bags(source=Made(task=task), size=5, assign=assign, rest=rest)
    data, source = part.load(), part.source.load()
    bags = members(data)
    assert sorted(map(len, bags)) == ([5] * 4 if rest == "drop" else [3, 5, 5, 5, 5])
    flat = list(chain.from_iterable(bags))
    assert len(set(flat)) == len(flat)
    y = source.train_y.double() if task == "regression" else torch.eye(3)[source.train_y]
    for bag, released in zip(bags, data.train_y, strict=True):
        assert released[:-1].tolist() == pytest.approx(y[bag].mean(0).tolist(), rel=1e-6)
    assert data.bags.by_response == (assign == "responses")
    assert data.input_shape == (2,)
    assert torch.equal(data.test_y, source.test_y) and torch.equal(data.test_x, source.test_x)


def test_no_individual_response_is_left_in_what_clients_hold():
    """Neither in the targets nor in a column: every tensor and array of the train set is searched.

    Bags of like responses, too, whose means are close to the responses.
    """
    for assign in ("random", "features", "responses"):
        data = Bags(source=Made(), size=5, assign=assign, clip=None).load()
        responses = set(Made().load().train_y.flatten().tolist())
        held = [data.train_x, data.train_y, *map(torch.as_tensor, data.columns.values())]
        for values in held:
            assert not responses & set(values.flatten().tolist())
        assert tuple(data.train_y.shape) == (4, 2)  # a mean and a size for each bag, no more
        assert data.columns == {}
        seen = data.as_a_model_sees_it()
        assert seen.train_y.abs().max() == 0 and seen.columns == {}
    source = LabelNoise(source=Bundled())  # keeps the true labels, and the digits, in columns
    assert {"clean_label", "digit"} <= set(source.load().columns)
    assert Bags(source=source, size=4).load().columns == {}


@pytest.mark.parametrize("strategy", ["aggregate", "least_squares"])
def test_a_client_is_never_given_one(strategy, monkeypatch):
    """In a whole run, whatever a half sees as a batch: means over bags of 7, whole bags only."""
    from fedsim.client.half import Batch

    seen = []
    make = Batch.__init__

    def spy(self, *, x, y):
        seen.append((tuple(x.shape), y.clone()))
        make(self, x=x, y=y)

    monkeypatch.setattr(Batch, "__init__", spy)
    words = ["data=bags", "data.size=7", f"strategy={strategy}", "model=linear", "rounds=1"]
    words += ["engine=in_process"]
    words += ["partition.num_clients=6", "participation=full", "client.batch_size=3"]
    simulation = Simulation(compose("base", words))
    list(simulation.loop.run(simulation.runtime.initial_params()))
    responses = Bundled(name="diabetes").load().train_y.flatten()
    means = simulation.dataset.train_y[:, 0]
    assert len(seen) > 12
    for shape, y in seen:
        assert shape == (len(y), 7, 10) and len(y) <= 3
        assert torch.isin(y[:, 0], means).all()
        assert (y[:, 1] == 7).all()
    alone = (means[:, None] - responses[None]).abs().min(1).values
    assert (alone > 0).float().mean() > 0.9  # a mean may equal some response by chance


def test_groups_are_not_mixed():
    data = Bags(source=Made(), size=2, assign="group", columns=["site"], rest="short").load()
    for bag, group, site in zip(
        members(data), data.columns["group"], data.columns["site"], strict=True
    ):
        assert {i % 4 for i in bag} == {group} and site == f"s{group}"
    assert sorted(chain.from_iterable(members(data))) == list(range(23))


def test_places_are_cells_of_a_grid():
    data = Bags(source=Made(count=20), size=5, assign="group", columns=["place"], cells=2).load()
    assert [{i // 10 for i in bag} for bag in members(data)] == [{0}, {0}, {1}, {1}]
    assert set(data.columns) == {"group"}


def test_similar_inputs_lie_together():
    near, far = (
        np.mean([np.ptp(bag) for bag in members(Bags(source=Made(), size=5, assign=a).load())])
        for a in ("features", "random")
    )
    assert near == 4 < far


@pytest.mark.parametrize("assign", ["random", "features", "group"])
def test_bags_do_not_depend_on_responses(assign, monkeypatch):
    more = {"columns": ["site"]} if assign == "group" else {}
    part = Bags(source=Made(), size=3, assign=assign, **more)
    before, other = members(part.load()), Made().load()
    changed = Dataset(**{**vars(other), "train_y": other.train_y.flip(0) * -3})
    monkeypatch.setattr(Made, "load", lambda self: changed)
    assert members(part.load()) == before


def test_single_responses_are_clipped_and_not_means():
    data = Bags(source=Made(), size=23, clip=1100.0).load()
    y = Made().load().train_y
    assert float(data.train_y[0, 0]) == pytest.approx(float(y.clamp(max=1100).mean()), rel=1e-6)
    assert float(y.mean().clamp(max=1100)) != pytest.approx(float(data.train_y[0, 0]), rel=1e-3)
    assert data.bags.bound == 1100


def test_what_is_refused():
    for values, words in (
        ({"columns": ["target"], "assign": "group"}, "tells the responses themselves"),
        ({"columns": ["sites"], "assign": "group"}, "did you mean"),
        ({"columns": ["site"], "assign": "group", "cells": 3}, "is no number"),
        ({"size": 24}, "no bag of 24"),
        ({"source": Made(task="classification"), "clip": 1.0}, "class shares"),
        ({"source": Bags(source=Made())}, "bags already"),
        ({"columns": ["site"]}, "assign=random"),
        ({"source": "diabetes"}, "no data part"),
    ):
        with pytest.raises(ConfigError, match=words):
            Bags(**{"source": Made(), **values}).load()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=fedavg"], "strategy=aggregate"),
        (["partition.holdout=0.2"], "partition.holdout=0"),
        (["privacy=dp_sgd", "participation=bernoulli"], "sample is a bag"),
        (["data.source.name=digits", "privacy=label_dp"], "privacy=aggregate_labels"),
        (["evaluation.decomposition=true"], "response"),
        (["data.source.name=digits", "attack=label_flip"], "bags"),
    ],
)
def test_what_needs_single_responses_is_refused(words, said):
    base = ["data=bags", "strategy=aggregate", "model=linear", "partition.num_clients=5"]
    simulation = Simulation(compose("base", [*base, "participation=full", *words]))
    with pytest.raises(ConfigError, match=said):
        simulation.loop  # noqa: B018


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "shards"])
def test_partitions_deal_out_whole_bags(partition):
    words = ["data=bags", "data.source.name=digits", "strategy=aggregate", f"partition={partition}"]
    simulation = Simulation(compose("base", [*words, "partition.num_clients=10"]))
    held = np.concatenate([simulation.partition.indices(k) for k in range(10)])
    assert sorted(held) == list(range(len(simulation.dataset.train_x)))
    shares = simulation.dataset.train_y[:, :-1]
    assert simulation.dataset.labels().tolist() == shares.argmax(1).tolist()
