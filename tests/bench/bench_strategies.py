"""CPU-seconds of one round of the strategies with a client half or state per client, over FedAvg's.

50 of 200 clients, 50 samples each, one epoch of batch 10, plain SGD, float32, one thread, on the
`cohort` engine; random data. All strategies run in one process, one round of each in turn, so that
whatever else the machine does meets them alike; figures are medians over the repetitions. Every
client has taken part before a round is counted, so that all state exists.

    python tests/bench/bench_strategies.py [repetitions]

writes `results/baselines/cost.md`.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.admission import Admission
from fedsim.client import LocalSGD
from fedsim.client.gradient import Plain
from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import Dataset
from fedsim.engines.cohort import Cohort
from fedsim.participation.base import Schedule
from fedsim.partition.base import ArrayPartition
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation, FedsimStrategy
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.fedvarp import FedVARP
from strategies.mifa import MIFA
from strategies.moon import Moon
from strategies.scaffold import Scaffold

CLIENTS, COHORT, SAMPLES = 200, 50, 50
MODELS = {"MLP 784-200-10": (784, 200, 10), "digits MLP 64-32-10": (64, 32, 10)}
STRATEGIES: dict[str, Callable[[], FedsimStrategy]] = {
    "FedAvg": FedAvg,
    "FedProx": FedProx,
    "FedNova": FedNova,
    "FedVARP": FedVARP,
    "MIFA": MIFA,
    "SCAFFOLD": Scaffold,
    "FedDyn": FedDyn,
    "SCAFFOLD, option I": lambda: Scaffold(option="I"),
    "MOON": Moon,
}
TARGET = 1.5
"""Times FedAvg; for all but the last two, which do more gradient work by definition."""
RESULT = Path(__file__).parents[2] / "results" / "baselines" / "cost.md"


class InTurn(Schedule):
    """`COHORT` clients after another, so that after a few rounds everybody has taken part."""

    def select(self, server_round: int) -> np.ndarray:
        first = (server_round - 1) * COHORT
        return np.sort((first + np.arange(COHORT)) % CLIENTS)

    def rates(self) -> np.ndarray:
        return np.full(CLIENTS, COHORT / CLIENTS)


def make_runtime(sizes: tuple[int, ...], strategy: FedsimStrategy) -> ClientRuntime:
    """Make the client side: random data, an MLP of the given sizes."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS * SAMPLES, sizes[0], generator=rng)
    y = torch.randint(sizes[-1], (len(x),), generator=rng)
    dataset = Dataset(
        name="random", task="classification",
        train_x=x, train_y=y, test_x=x[:1], test_y=y[:1], num_outputs=sizes[-1],
    )  # fmt: skip
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    partition = ArrayPartition(np.random.default_rng(0).permutation(len(x)),
                               np.arange(0, len(x) + 1, SAMPLES))  # fmt: skip
    return ClientRuntime(
        dataset=dataset, partition=partition, holdout=0.0, model=nn.Sequential(*layers[:-1]),
        work=LocalSGD(lr=0.01, batch_size=10), half=strategy.client_half, estimator=Plain(), seed=0,
    )  # fmt: skip


def rounds_of(sizes: tuple[int, ...], strategy: FedsimStrategy) -> Iterator[Callable[[], Any]]:
    """Yield one callable per round of a whole federation."""
    runtime = make_runtime(sizes, strategy)
    strategy.federation = Federation(
        num_clients=CLIENTS, seed=0, schedule=InTurn(),
        lr_at=runtime.work.lr_at, trainable=lambda: runtime.trainable,
    )  # fmt: skip
    loop = RoundLoop(
        strategy=strategy, grid=Cohort().grid(runtime), schedule=InTurn(),
        admission=Admission(), evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0, last_round=10**9,
    )  # fmt: skip
    rounds = loop.run(runtime.initial_params())
    while True:
        yield lambda: next(rounds)


def measure(sizes: tuple[int, ...], repetitions: int) -> dict[str, float]:
    """Return the median CPU-seconds of a round of each strategy."""
    contestants = {name: rounds_of(sizes, make()) for name, make in STRATEGIES.items()}
    for contestant in contestants.values():
        for _ in range(CLIENTS // COHORT + 1):
            next(contestant)()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            one_round = next(contestant)
            before = time.process_time()
            one_round()
            seconds[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure, print, and write the table."""
    torch.set_num_threads(1)
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    results = {model: measure(sizes, repetitions) for model, sizes in MODELS.items()}
    lines = ["| strategy |" + "".join(f" {m}, CPU-ms | / FedAvg |" for m in results),
             "| --- |" + " ---: | ---: |" * len(results)]  # fmt: skip
    for name in STRATEGIES:
        cells = [f" {r[name] * 1e3:.1f} | {r[name] / r['FedAvg']:.2f} |" for r in results.values()]
        lines.append(f"| {name} |" + "".join(cells))
    table = "\n".join(lines)
    print(table)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(PAGE.format(table=table, repetitions=repetitions, target=TARGET,
                                  clients=CLIENTS, cohort=COHORT, samples=SAMPLES,
                                  torch=torch.__version__, machine=platform.machine()))  # fmt: skip


PAGE = """# What a round of each strategy costs

    python tests/bench/bench_strategies.py {repetitions}

CPU time of one round on the `cohort` engine, median of {repetitions}: {cohort} of {clients}
clients, {samples} samples each, one epoch of batch 10, plain SGD, float32, one thread. The
strategies take turns round by round in one process; each client has taken part before, so that all
state exists. {machine}, torch {torch}, other work on the machine.

{table}

The target is {target} times FedAvg for all but the last two lines.

What is paid for:

- **FedProx**, **FedNova**: one pass over the weights per step (the pull towards the global model is
  a step of its own, in place, beside the layer rules' one), or nothing at all.
- **FedVARP**, **MIFA**: every update is kept: a row is read, replaced, and the exact total of all
  rows brought up to date in float64. That replaces FedAvg's sum of updates.
- **SCAFFOLD**, **FedDyn**: both of these, and a tensor of each client's own that every step reads:
  memory traffic, which on small models is hidden by the cost of dispatch.
- **SCAFFOLD, option I** takes the gradient of all samples once more before the local steps, by
  definition: as much gradient work as the one epoch of steps.
- **MOON** runs three models forward instead of one, by definition, and its loss needs more than the
  outputs, so that it runs through `torch.func` instead of the layer rules.
"""


if __name__ == "__main__":
    main()
