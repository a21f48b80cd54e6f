"""CPU-seconds of local training on bags over that of ordinary training on the same samples.

16 clients with 96 samples each of random data, one epoch in batches of 32 samples (so 32/k bags),
plain SGD, float32, one thread, on the `cohort` engine. Ordinary training and all losses take turns
round by round in one process, so that whatever else the machine does meets them alike; figures are
medians over the repetitions of each round's ratio to the ordinary one of the same turn.

    python tests/bench/bench_bags.py [repetitions]

prints the table of `results/aggregate_responses/README.md`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedsim.admission import Admission
from fedsim.client import LocalSGD
from fedsim.client.gradient import Plain
from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import BagLayout, Dataset
from fedsim.engines.cohort import Cohort
from fedsim.models.bags import OnBags
from fedsim.participation.base import Population
from fedsim.participation.full import Full
from fedsim.partition.base import ArrayPartition
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation, FedsimStrategy
from strategies.aggregate import Aggregate
from strategies.fedavg import FedAvg

CLIENTS, SAMPLES, EACH, SIZES = 16, 96, 32, (4, 8, 32)
MODELS = {"MLP 64-200-200-10": (64, 200, 200, 10), "linear 64-10": (64, 10)}
TARGET = 1.3

Task = Literal["classification", "regression"]


def make_dataset(task: Task, inputs: int, outputs: int, size: int | None) -> Dataset:
    """Return random samples; in bags of `size` of them unless it is None."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS * SAMPLES, inputs, generator=rng)
    labels = torch.randint(outputs, (len(x),), generator=rng)
    numbers = torch.randn(len(x), outputs, generator=rng)
    y = labels if task == "classification" else numbers
    test = {"test_x": x[:1], "test_y": y[:1]}
    if size is None:
        return Dataset(name="random", task=task, train_x=x, train_y=y, num_outputs=outputs, **test)
    each = nn.functional.one_hot(labels, outputs).float() if task == "classification" else numbers
    mean = each.view(-1, size, outputs).mean(1)
    return Dataset(
        name="random", task=task, num_outputs=outputs, bags=BagLayout(places=size), **test,
        train_x=x.view(-1, size, inputs),
        train_y=torch.cat([mean, torch.full((len(mean), 1), float(size))], 1),
    )  # fmt: skip


def rounds_of(
    sizes: tuple[int, ...], task: Task, size: int | None, strategy: FedsimStrategy
) -> Iterator[Callable[[], Any]]:
    """Yield one callable per round of a whole federation."""
    dataset = make_dataset(task, sizes[0], sizes[-1], size)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model: nn.Module = nn.Sequential(*layers[:-1])
    if size is not None:
        model = OnBags(model, 1, size)
    count = len(dataset.train_x)
    partition = ArrayPartition(np.arange(count), np.arange(0, count + 1, count // CLIENTS))
    runtime = ClientRuntime(
        dataset=dataset, partition=partition, holdout=0.0, model=model, estimator=Plain(), seed=0,
        work=LocalSGD(lr=0.01, batch_size=EACH // (size or 1)), half=strategy.client_half,
    )  # fmt: skip
    schedule = Full().bind(Population(num_clients=CLIENTS, seed=0, label_histogram=lambda: None))
    strategy.federation = Federation(
        num_clients=CLIENTS, seed=0, schedule=schedule,
        lr_at=runtime.work.lr_at, trainable=lambda: runtime.trainable,
    )  # fmt: skip
    loop = RoundLoop(
        strategy=strategy, grid=Cohort().grid(runtime), schedule=schedule,
        admission=Admission(), evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0, last_round=10**9,
    )  # fmt: skip
    rounds = loop.run(runtime.initial_params())
    while True:
        yield lambda: next(rounds)


def measure(
    sizes: tuple[int, ...], task: Task, size: int, repetitions: int
) -> dict[str, tuple[float, float]]:
    """Return loss -> (median CPU-seconds of a round, median ratio to the ordinary round)."""
    strategies = {loss: Aggregate(loss=loss) for loss in ("bag", "interpolating", "instance")}
    if task == "classification":
        prior = [1 / sizes[-1]] * sizes[-1]
        strategies["EasyLLP, prior given"] = Aggregate(loss="easyllp", prior=prior)
        strategies["EasyLLP"] = Aggregate(loss="easyllp")
    contestants = {"ordinary": rounds_of(sizes, task, None, FedAvg())}
    for name, strategy in strategies.items():
        contestants[name] = rounds_of(sizes, task, size, strategy)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(-3, repetitions):
        for name, contestant in contestants.items():
            one_round = next(contestant)
            before = time.process_time()
            one_round()
            if repetition >= 0:
                seconds[name].append(time.process_time() - before)
    return {
        name: (
            statistics.median(own),
            statistics.median(a / b for a, b in zip(own, seconds["ordinary"], strict=True)),
        )
        for name, own in seconds.items()
    }


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 51
    print("| model, task | k | ordinary, ms | bag | interpolating | instance "
          "| EasyLLP, prior given | EasyLLP |")  # fmt: skip
    print("| --- |" + " ---: |" * 7)
    for (model, sizes), task in itertools.product(MODELS.items(), ("classification", "regression")):
        for size in SIZES:
            found = measure(sizes, task, size, repetitions)
            (ordinary, _), *others = found.values()
            cells = [f"{ratio:.2f} ×" for _, ratio in others] + [""] * (6 - len(found))
            row = [f"{model}, {task}", str(size), f"{ordinary * 1e3:.1f}", *cells]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
