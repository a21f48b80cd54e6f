"""Shared builders: small data sets, runtimes, schedules, round loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedsim.admission import Admission
from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.gradient import Plain
from fedsim.client.runtime import ClientRuntime
from fedsim.config import Config
from fedsim.data.dataset import Dataset
from fedsim.engines.base import EnginePart
from fedsim.lifecycle import Run
from fedsim.models.base import ModelPart
from fedsim.models.structure import layers_of
from fedsim.participation.base import Schedule
from fedsim.partition.base import ArrayPartition, Partition
from fedsim.records import Params
from fedsim.results import RunFolder
from fedsim.rounds import Evaluation, RoundLoop, RoundReport
from fedsim.simulation import Simulation
from fedsim.strategy import Federation, FedsimStrategy
from fedsim.topology.hierarchical import Hierarchical
from fedsim.topology.ring import Ring
from fedsim.topology.star import Star
from strategies.fedavg import FedAvg

RAGGED = (7, 1, 12, 0, 10, 3, 25, 4)
"""Samples of eight clients: one has none, one a single one, some less than a batch."""


def classification(
    n: int = 100, shape: Sequence[int] = (6,), outputs: int = 3, dtype: torch.dtype = torch.float32
) -> Dataset:
    """Gaussian inputs, labels by a random linear map, so that there is something to learn."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n + 20, *shape, generator=rng)
    y = (x.flatten(1) @ torch.randn(x[0].numel(), outputs, generator=rng)).argmax(1)
    return _split(x.to(dtype), y, n, outputs, "classification")


def regression(n: int = 100, inputs: int = 6, outputs: int = 2) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n + 20, inputs, generator=rng, dtype=torch.float64)
    y = x @ torch.randn(inputs, outputs, generator=rng, dtype=torch.float64)
    return _split(x, y, n, outputs, "regression")


def tokens(n: int = 100, length: int = 5, vocabulary: int = 7) -> Dataset:
    """Sequences whose target is the next token."""
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(vocabulary, (n + 20, length + 1), generator=rng)
    return _split(text[:, :-1], text[:, 1:], n, vocabulary, "classification")


def _split(x: Tensor, y: Tensor, n: int, outputs: int, task: str) -> Dataset:
    return Dataset(
        name="made_up",
        task=task,  # type: ignore[arg-type]
        train_x=x[:n],
        train_y=y[:n],
        test_x=x[n:],
        test_y=y[n:],
        num_outputs=outputs,
    )


def shares(dataset: Dataset, sizes: Sequence[int] = RAGGED) -> ArrayPartition:
    """Give client k `sizes[k]` samples, shuffled."""
    order = np.random.default_rng(0).permutation(len(dataset.train_x))
    return ArrayPartition(order, np.cumsum([0, *sizes]))


def make_model(model: ModelPart | Callable[[], nn.Module], dataset: Dataset) -> nn.Module:
    """Build a model part, or call a function, under a fixed seed and in the data's precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = model.build(dataset) if isinstance(model, ModelPart) else model()
    x = dataset.train_x
    return module.to(x.dtype) if x.is_floating_point() else module


def make_runtime(
    dataset: Dataset,
    model: ModelPart | Callable[[], nn.Module],
    *,
    partition: Partition | None = None,
    holdout: float = 0.0,
    half: ClientHalf | None = None,
    work: LocalSGD | None = None,
) -> ClientRuntime:
    return ClientRuntime(
        dataset=dataset,
        partition=partition or shares(dataset),
        holdout=holdout,
        model=make_model(model, dataset),
        work=work or LocalSGD(lr=0.1, batch_size=4),
        half=half or ClientHalf(),
        estimator=Plain(),
        seed=0,
    )


class Everyone(Schedule):
    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def select(self, server_round: int) -> np.ndarray:
        return np.arange(self.num_clients)

    def rates(self) -> np.ndarray:
        return np.ones(self.num_clients)


class Some(Schedule):
    """`cohort` clients a round, drawn by the round."""

    def __init__(self, num_clients: int, cohort: int) -> None:
        self.num_clients, self.cohort = num_clients, cohort

    def select(self, server_round: int) -> np.ndarray:
        rng = np.random.default_rng(server_round)
        return np.sort(rng.choice(self.num_clients, self.cohort, replace=False))

    def rates(self) -> np.ndarray:
        return np.full(self.num_clients, self.cohort / self.num_clients)


GRAPHS = {
    "star": Star(),
    "peer": Ring(),
    "hierarchical": Hierarchical(edge_servers=4),
}


def graph_for(strategy: FedsimStrategy, num_clients: int) -> Callable[[], nx.Graph]:
    """Return what makes a graph that the strategy runs on."""
    return lambda: GRAPHS[min(strategy.topologies)].graph(num_clients)


def run(
    runtime: ClientRuntime,
    engine: EnginePart,
    *,
    strategy: Strategy | None = None,
    rounds: int = 10,
    schedule: Schedule | None = None,
    evaluate: bool = False,
) -> tuple[Params, list[RoundReport]]:
    """Run a whole federation; return the last model and all reports."""
    num_clients = runtime.partition.num_clients
    schedule = schedule or Everyone(num_clients)
    strategy = strategy or FedAvg()
    if isinstance(strategy, FedsimStrategy):
        whom = "all" if evaluate else "none"
        strategy.federation = Federation(
            num_clients=num_clients,
            seed=0,
            schedule=schedule,
            evaluate=whom,
            layers=layers_of(runtime.model),
            lr_at=runtime.work.lr_at,
            trainable=lambda: runtime.trainable,
            model=runtime.model,
            server_data=runtime.dataset.server,
            graph=graph_for(strategy, num_clients),
        )
    loop = RoundLoop(
        strategy=strategy,
        grid=engine.grid(runtime),
        schedule=schedule,
        admission=Admission(),
        evaluation=Evaluation(central=None, clients=evaluate, every=1),
        seed=0,
        last_round=rounds,
        frozen=runtime.frozen,
        compressor=runtime.compressor,
    )
    results = list(loop.run(runtime.initial_params()))
    return results[-1][0], [report for _, report in results]


def whole_and_resumed(config: Config, cut_after: int) -> tuple[RunFolder, RunFolder]:
    """Return the folders of a run that went through, and of one that was cut and went on."""
    whole = RunFolder.create(config)
    list(Run(simulation=Simulation(config), folder=whole).start())
    folder = RunFolder.create(config)
    for report in (cut := Run(simulation=Simulation(config), folder=folder).start()):
        if report.server_round == cut_after:
            cut.close()
            break
    assert not folder.ended and not (folder.path / "graph.json").exists()
    resumed = RunFolder.open(folder.path)
    list(Run(simulation=Simulation(resumed.config()), folder=resumed).resume())
    return whole, resumed


def flat(params: Params) -> Tensor:
    return torch.cat([t.flatten().double() for t in params.values()])


def distance(a: Params, b: Params) -> float:
    """Norm of the difference over the norm of `b`."""
    return float((flat(a) - flat(b)).norm() / flat(b).norm())
