"""CPU-seconds of one round: a hand-written batched loop, the cohort engine, the sequential engine.

50 of 1000 clients, 50 samples each, one epoch of batch 10, plain SGD, float32, one thread, random
data `[50000, 784]`. The three run in one process, one after another in every repetition, on
the same samples in the same batches. Figures are medians.

The hand-written loop knows nothing of federations: no selection, no drawing of batches, no
messages, no admission, no averaging. It trains blocks of 10 clients with an explicit forward and
backward pass, and adds each gradient straight into the weights.

    python tests/bench/bench_cohort.py [repetitions]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.admission import Admission
from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.gradient import Plain
from fedsim.client.runtime import ClientRuntime
from fedsim.data.dataset import Dataset
from fedsim.engines.base import EnginePart
from fedsim.engines.cohort import Cohort, choose_trainer
from fedsim.engines.in_process import InProcess
from fedsim.participation.base import Schedule
from fedsim.partition.base import ArrayPartition
from fedsim.records import Params
from fedsim.rounds import Evaluation, RoundLoop
from fedsim.strategy import Federation
from strategies.fedavg import FedAvg

CLIENTS, COHORT, SAMPLES, BLOCK, LR = 1000, 50, 50, 10, 0.1
MODELS: dict[str, tuple[int, ...]] = {"logistic 784-10": (), "MLP 784-200-10": (200,)}


class RandomCohort(Schedule):
    """`COHORT` clients drawn without replacement."""

    def select(self, server_round: int) -> np.ndarray:
        rng = np.random.default_rng(server_round)
        return np.sort(rng.choice(CLIENTS, COHORT, replace=False))

    def rates(self) -> np.ndarray:
        return np.full(CLIENTS, COHORT / CLIENTS)


def make_runtime(hidden: tuple[int, ...]) -> ClientRuntime:
    """Make the client side: random data, an MLP with the given hidden layers."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS * SAMPLES, 784, generator=rng)
    y = torch.randint(10, (len(x),), generator=rng)
    dataset = Dataset(
        name="random", task="classification",
        train_x=x, train_y=y, test_x=x[:1], test_y=y[:1], num_outputs=10,
    )  # fmt: skip
    sizes = (784, *hidden, 10)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    partition = ArrayPartition(np.random.default_rng(0).permutation(len(x)),
                               np.arange(0, len(x) + 1, SAMPLES))  # fmt: skip
    return ClientRuntime(
        dataset=dataset, partition=partition, holdout=0.0, model=nn.Sequential(*layers[:-1]),
        work=LocalSGD(lr=LR, batch_size=10), half=ClientHalf(), estimator=Plain(), seed=0,
    )  # fmt: skip


def by_hand(
    stacked: list[Tensor], params: Params, x: Tensor, y: Tensor, rows_SKB: np.ndarray
) -> None:
    """Train one block of clients on pool rows `[S, K, B]`, from `params`, into `stacked`."""
    clients, batch = rows_SKB.shape[1:]
    for rows, start in zip(stacked, params.values(), strict=True):
        rows.copy_(start.expand(rows.shape))
    weights, biases = stacked[0::2], stacked[1::2]
    for rows_KB in torch.from_numpy(rows_SKB):
        inputs, labels = [x[rows_KB]], y[rows_KB]
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = torch.baddbmm(b.unsqueeze(1), inputs[-1], w.transpose(1, 2))
            inputs.append(z if layer == len(weights) - 1 else z.clamp_min_(0))
        dz = torch.softmax(inputs[-1], 2)
        dz.scatter_add_(2, labels.unsqueeze(2), dz.new_full((clients, batch, 1), -1.0))
        dz /= batch
        for layer in reversed(range(len(weights))):
            a = inputs[layer]
            da = torch.bmm(dz, weights[layer]).mul_(a > 0) if layer else dz
            weights[layer].baddbmm_(dz.transpose(1, 2), a, alpha=-LR)
            biases[layer].add_(dz.sum(1), alpha=-LR)
            dz = da


def rounds_by_hand(runtime: ClientRuntime) -> Iterator[Callable[[], list[Tensor]]]:
    """Yield one callable per round; the batches are drawn before it is called.

    It returns the weights of the last block, which the next block overwrites.
    """
    params = runtime.initial_params()
    x, y = runtime.dataset.train_x, runtime.dataset.train_y
    stacked = [t.new_empty(BLOCK, *t.shape) for t in params.values()]

    def train(blocks: list[np.ndarray]) -> list[Tensor]:
        for rows_SKB in blocks:
            by_hand(stacked, params, x, y, rows_SKB)
        return stacked

    for server_round in itertools.count(1):
        rows_KSB = np.stack([
            runtime.samples(k)[np.stack(runtime.work.batches(0, server_round, k, SAMPLES))]
            for k in RandomCohort().select(server_round).tolist()
        ])  # fmt: skip
        rows_SKB = rows_KSB.transpose(1, 0, 2)
        yield partial(train, [rows_SKB[:, i : i + BLOCK].copy() for i in range(0, COHORT, BLOCK)])


def rounds_of(runtime: ClientRuntime, engine: EnginePart) -> Iterator[Callable[[], Any]]:
    """Yield one callable per round of a whole federation."""
    strategy = FedAvg()
    strategy.federation = Federation(num_clients=CLIENTS, seed=0, schedule=RandomCohort())
    loop = RoundLoop(
        strategy=strategy, grid=engine.grid(runtime), schedule=RandomCohort(),
        admission=Admission(), evaluation=Evaluation(central=None, clients=False, every=1),
        seed=0, last_round=10**9,
    )  # fmt: skip
    rounds = loop.run(runtime.initial_params())
    while True:
        yield lambda: next(rounds)


def check_same(hidden: tuple[int, ...]) -> None:
    """Check that the hand-written loop and the cohort engine train the last block alike."""
    runtime = make_runtime(hidden)
    clients = RandomCohort().select(1)[-BLOCK:]
    params, start = runtime.initial_params(), runtime.initial_params()
    trainer, _, _ = choose_trainer(runtime, "rules")
    assert trainer is not None
    chunk = trainer.train(clients, 1, params, {})
    by_hand_weights = next(rounds_by_hand(runtime))()
    assert chunk.client_index.tolist() == clients.tolist()
    for (name, rows), expected in zip(chunk.arrays.items(), by_hand_weights, strict=True):
        assert not torch.equal(rows[0], start[name])
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-6)


def measure(hidden: tuple[int, ...], repetitions: int) -> list[float]:
    """Return the median CPU-seconds of (by hand, cohort, in process)."""
    runtime = make_runtime(hidden)
    contestants = [
        rounds_by_hand(runtime),
        rounds_of(runtime, Cohort()),
        rounds_of(runtime, InProcess()),
    ]
    for contestant in contestants:  # warms caches up
        next(contestant)()
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(repetitions):
        for i, contestant in enumerate(contestants):
            one_round = next(contestant)
            before = time.process_time()
            one_round()
            seconds[i].append(time.process_time() - before)
    return [statistics.median(values) for values in seconds]


def main() -> None:
    """Print one line per model."""
    torch.set_num_threads(1)
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{'CPU-ms per round':18} {'by hand':>8} {'cohort':>8} {'in proc.':>8}"
          f" {'cohort/hand':>12} {'cohort/in proc.':>16}")  # fmt: skip
    for name, hidden in MODELS.items():
        check_same(hidden)
        hand, cohort, sequential = measure(hidden, repetitions)
        print(f"{name:18} {hand * 1e3:8.1f} {cohort * 1e3:8.1f} {sequential * 1e3:8.1f}"
              f" {cohort / hand:12.2f} {cohort / sequential:16.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
