"""Federated classification from label proportions: every loss at every bag size, tuned alike.

The learning rate of each (data, bag size, loss) is sought on a run whose seed is not reported, on a
fifth of the *train* samples that is held back from it and keeps its labels, on a ladder of half
decades: from 0.1 up until a step loses over two points of accuracy, or so down if nothing above is
better. The interpolating loss does so at each ρ of `RHOS`, and takes the best. The test set is met
by the reported runs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch

from fedsim.config import build_part, compose
from fedsim.data.bags import Bags
from fedsim.data.dataset import DataPart, Dataset
from fedsim.errors import FedsimError
from fedsim.simulation import Simulation

Run = dict[str, Any]

LOSSES = ("dllp", "instance", "interpolating", "easyllp")
BAG_SIZES = (1, 4, 16, 64, 2, 8, 32)
RHOS = (0.01, 0.1)
EACH = 64
"""Samples of a batch, whatever the size of a bag: EACH // k bags."""
TUNING_SEED = 1000
SLACK = 0.02
LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SETTINGS = {
    "adult": ["data=bags_adult", "model=linear", "rounds=15"],
    "fashion": [
        *("data=bags_fashion_mnist", "data.source.flat=true", "data.source.train_limit=12000"),
        *("model=mlp", "model.hidden=[64]", "rounds=30"),
    ],
}
PRIORS = {"adult": [0.76, 0.24], "fashion": [0.1] * 10}
"""Of EasyLLP: the shares of the classes among all train samples, which bag means tell."""


@dataclass(frozen=True, kw_only=True)
class Read(DataPart):
    """A data set that is in memory, read once for all runs.

    Attributes:
        data: The data set.
    """

    data: Dataset

    def load(self) -> Dataset:
        """Return it."""
        return self.data


@cache
def source(part: str, held: bool) -> Read:
    """Return the data set of a part; if `held`, a fifth of its train samples as its test set."""
    bags = cast(Bags, build_part(compose("base", SETTINGS[part]), "data"))
    data = bags.source.load()
    if not held:
        return Read(data=data)
    order = np.random.default_rng(0).permutation(len(data.train_x))
    rows, other = (torch.from_numpy(o) for o in np.split(order, [len(order) * 4 // 5]))
    return Read(
        data=replace(
            data,
            train_x=data.train_x[rows],
            train_y=data.train_y[rows],
            test_x=data.train_x[other],
            test_y=data.train_y[other],
            columns={},
        )
    )


def job(point: Run) -> Run:
    """Return a point with its result; the accuracy of a run that breaks off is 0."""
    words = [
        *SETTINGS[point["part"]],
        *("strategy=aggregate", f"strategy.loss={point['loss']}", "participation=full"),
        *("partition.num_clients=10", f"seed={point['seed']}", "data.bag_seed=${seed}"),
        *(f"data.size={point['k']}", f"client.batch_size={EACH // point['k']}"),
        *(f"client.lr={point['lr']}", "evaluation.every=1000", "device=cpu"),
    ]
    if point["loss"] == "interpolating":
        words.append(f"strategy.rho={point['rho']}")
    if point["loss"] == "easyllp":
        words.append(f"strategy.prior={PRIORS[point['part']]}")
    simulation = Simulation(compose("base", words))
    bags = cast(Bags, build_part(simulation.config, "data"))
    data = replace(bags, source=source(point["part"], point["held"])).load()
    simulation.dataset = data.to(simulation.device, simulation.dtype)
    try:
        *_, (_, report) = simulation.loop.run(simulation.runtime.initial_params())
    except FedsimError as error:
        return {**point, "accuracy": 0.0, "entropy": None, "failed": str(error)[:200]}
    accuracy, entropy = report.central["accuracy"], report.central["loss"]
    entropy = entropy if math.isfinite(entropy) else None
    return {**point, "config": simulation.config.hash[:12], "accuracy": accuracy,
            "entropy": entropy}  # fmt: skip


def points(data: str, k: int, seeds: int, done: Callable[[Run], Run]) -> Iterable[Run]:
    """Yield the reported runs of one bag size, once they are tuned.

    Args:
        data: A key of `SETTINGS`.
        k: Samples of a bag; at 1 all losses are the ordinary one, and only one of them is run.
        seeds: How many.
        done: point -> its result, run if need be.
    """
    for loss in LOSSES if k > 1 else LOSSES[:1]:
        tried = []
        for rho in RHOS if loss == "interpolating" else (0.0,):
            start = {"part": data, "k": k, "loss": loss, "rho": rho, "seed": TUNING_SEED}
            tried.append(climb({**start, "held": True}, done))
        best = max(tried, key=lambda run: run["accuracy"])
        for seed in range(seeds):
            yield {
                **{name: best[name] for name in ("part", "k", "loss", "rho", "lr")},
                **{"seed": seed, "held": False},
            }


def climb(start: Run, done: Callable[[Run], Run]) -> Run:
    """Return the best run of the ladder, walked from 0.1 up, or down, until it gets worse."""

    def at(step: int) -> Run:
        return done({**start, "lr": LADDER[step]})

    first = LADDER.index(0.1)
    best = at(first)
    for way in (1, -1):
        here = first
        while 0 <= here + way < len(LADDER):
            if at(here + way)["accuracy"] < at(here)["accuracy"] - SLACK:
                break
            here += way
            if at(here)["accuracy"] > best["accuracy"]:
                best = at(here)
        if best["lr"] != LADDER[first]:
            break
    return best
