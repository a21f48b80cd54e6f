"""Builds the parts that a scenario names, and starts the round loop."""

# Contracts are abstract classes, and parts are checked against them by `isinstance`.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedsim import seeds, third_party
from fedsim.attack.base import Attackers, AttackPart
from fedsim.catalog import APART
from fedsim.client.runtime import ClientRuntime
from fedsim.client.sequential import evaluate
from fedsim.client.work import LocalSGD
from fedsim.compatibility import check_answers, check_decomposition, check_parts, check_topology
from fedsim.compression import CompressionPart, Compressor
from fedsim.config import Config, build_part
from fedsim.data.dataset import DataPart, Dataset
from fedsim.decomposition import Decomposition
from fedsim.devices.base import DevicesPart, Fleet
from fedsim.engines import recipe
from fedsim.engines.base import EnginePart, IndexedGrid
from fedsim.engines.flwr_compat import quiet_flower
from fedsim.errors import ConfigError
from fedsim.footprint import Meter
from fedsim.memory import Able, able_clients, work_bytes
from fedsim.models.bags import on_bags
from fedsim.models.base import ModelPart
from fedsim.models.check import check_model, check_trainable
from fedsim.models.dropout import replace_dropout
from fedsim.models.none import NoModel
from fedsim.models.structure import layers_of, state_of
from fedsim.network import Network
from fedsim.pace.base import Hurried, PacePart
from fedsim.pace.check import check_pace
from fedsim.pace.gate import Pace
from fedsim.participation.base import (
    ParticipationPart,
    Population,
    Schedule,
    WithSamples,
)
from fedsim.partition.base import Partition, PartitionPart, labelled_sizes, train_sizes
from fedsim.protection import PrivacyPart, Protection, Setting
from fedsim.protection.base import NoPrivacy
from fedsim.query import Findings, QueryStrategy, Released
from fedsim.records import Params
from fedsim.report.shown import shown_clients
from fedsim.rounds import Evaluation, Observer, RoundLoop
from fedsim.smoke import Smoke
from fedsim.strategy import EvaluateWhom, Federation, FedsimStrategy
from fedsim.topology.base import TopologyPart
from fedsim.topology.traffic import ThroughServer, Traffic

if TYPE_CHECKING:
    import networkx as nx

log = logging.getLogger(__name__)

P = TypeVar("P")


Plant = Callable[["Simulation", Protection], Protection]
"""(the run, its privacy mechanism) -> what takes the mechanism's place."""


class Simulation:
    """One run, built from its configuration. Parts are made when they are first asked for.

    Args:
        config: The scenario.
        smoke: Cut it down; see `Smoke`.
        flower_grid: Where Flower has started this run, the grid that leads to its nodes.
        plant: Returns what takes the place of the privacy mechanism, in an audit of it.
    """

    def __init__(
        self,
        config: Config,
        smoke: Smoke | None = None,
        flower_grid: Grid | None = None,
        plant: Plant | None = None,
    ) -> None:
        quiet_flower()
        torch.set_num_threads(1)  # one thread per client: results do not depend on the machine
        self.config = config
        self.settings = config.settings
        self.smoke = smoke
        self.flower_grid = flower_grid
        self.plant = plant
        self.last_round = 1 if smoke else self.settings.rounds

    @cached_property
    def device(self) -> torch.device:
        """Where the data and the models live."""
        name = self.settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device: {name!r} is not there ({reason}); use auto or cpu"
            ) from error
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of data and weights."""
        return {"float32": torch.float32, "float64": torch.float64}[self.settings.precision]

    @cached_property
    def dataset(self) -> Dataset:
        """All samples, on the device."""
        with _about("data"):
            return self._part("data", DataPart).load().to(self.device, self.dtype)

    @cached_property
    def partition_part(self) -> PartitionPart:
        """The partition scheme."""
        return self._part("partition", PartitionPart)

    @cached_property
    def partition(self) -> Partition:
        """Who holds which samples."""
        rng = seeds.rng(self.settings.seed, 0, seeds.SERVER, "partition")
        dataset = self.dataset
        with _about("partition"):
            return self.partition_part.split(dataset, rng)

    @cached_property
    def label_histogram(self) -> np.ndarray:
        """How many samples of each class each client holds, `[N, C]`."""
        labels = self.dataset.labels()
        return self.partition.label_histogram(labels, int(labels.max()) + 1)

    @cached_property
    def schedule(self) -> Schedule:
        """Who takes part in which round."""
        hidden, open_labels = self.privacy_part.hides_sizes, self.privacy_part.reads_labels
        population = Population(
            num_clients=self.partition.num_clients,
            seed=self.settings.seed,
            label_histogram=(lambda: self.label_histogram) if open_labels else self._no_histogram,
        )
        with _about("participation"):
            bound = self._part("participation", ParticipationPart).bind(population)
        schedule: Schedule = bound if hidden else WithSamples(bound, self._train_sizes)
        if self.able_N is not None:
            schedule = Able(schedule, self.able_N)
        return self.smoke.schedule(schedule, population.num_clients) if self.smoke else schedule

    @cached_property
    def fleet(self) -> Fleet | None:
        """The devices of the run's clients; None without a profile."""
        with _about("devices"):
            part = self._part("devices", DevicesPart)
            return part.fleet(self.partition.num_clients, self.settings.seed)

    @cached_property
    def able_N(self) -> np.ndarray | None:
        """Whose memory holds a client's local work; None if everybody's does, or nothing trains."""
        if self.fleet is None or self.fleet.memory_N is None or self.asking is not None:
            return None
        clients = np.arange(self.partition.num_clients)
        hidden = self.privacy_part.hides_sizes
        samples_N = np.full(len(clients), 2**62) if hidden else self._train_sizes(clients)
        need_N = work_bytes(self.model, self.dataset.train_x, self.work, samples_N)
        with _about("devices"):
            return able_clients(self.fleet.memory_N, need_N)

    def _no_histogram(self) -> np.ndarray:
        raise ConfigError(
            "participation: who takes part would depend on the clients' labels, which "
            f"privacy={self.target('privacy')} does not account for; use participation=bernoulli, "
            "uniform or full"
        )

    def _train_sizes(self, clients: np.ndarray) -> np.ndarray:
        sizes = train_sizes(self.partition.sizes(clients), self.partition_part.holdout)
        strategy = self._strategy
        whole = isinstance(strategy, FedsimStrategy) and strategy.client_half.takes_unlabelled
        return sizes if whole else labelled_sizes(sizes, self.dataset.labelled)

    @cached_property
    def model(self) -> nn.Module:
        """The model, initialised from the scenario's seed."""
        if self.asking is not None:
            return self._released(self.asking)
        check_trainable(self.dataset)
        key = seeds.sequence(self.settings.seed, 0, seeds.SERVER, "model")
        data = self.dataset.as_a_model_sees_it()
        with torch.random.fork_rng():
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]) >> 1)
            part = build_part(self.config, "model")
            model = part.build(data) if isinstance(part, ModelPart) else part
        model = replace_dropout(model).to(self.device, self.dtype)
        check_model(model, data)
        return on_bags(model, self.dataset)

    def _released(self, asking: QueryStrategy) -> nn.Module:
        """Return what stands where a model would, for a strategy that asks."""
        part = build_part(self.config, "model")
        if not isinstance(part, NoModel):
            raise ConfigError(
                f"model._target_: {self.target('model')}, but strategy {self.target('strategy')} "
                "trains no model; set model=none"
            )
        sizes_N = self.partition.sizes(np.arange(self.partition.num_clients))
        with _about("strategy"):
            return Released(asking.begin(self.dataset, sizes_N)).to(self.device)

    @cached_property
    def _strategy(self) -> Strategy:
        return self._part("strategy", Strategy)

    @property
    def asking(self) -> QueryStrategy | None:
        """The strategy, if it asks questions and trains nothing; see `fedsim.query`."""
        return self._strategy if isinstance(self._strategy, QueryStrategy) else None

    @cached_property
    def strategy(self) -> Strategy:
        """The server half; ours also learn who takes part."""
        strategy = self._strategy
        if isinstance(strategy, FedsimStrategy):
            strategy.federation = Federation(
                num_clients=self.partition.num_clients,
                seed=self.settings.seed,
                schedule=self.schedule,
                evaluate=self._evaluating,
                layers=None if self.asking else layers_of(self.model),
                lr_at=self.work.lr_at,
                trainable=lambda: self.runtime.trainable,
                model=self.model,
                server_data=self.dataset.server,
                graph=lambda: self.graph,
                latencies=lambda: None if self.meter is None else self.meter.latencies(),
            )
        return strategy

    @cached_property
    def privacy_part(self) -> PrivacyPart:
        """The privacy mechanism, as the scenario names it."""
        return self._part("privacy", PrivacyPart)

    @cached_property
    def protection(self) -> Protection:
        """The privacy mechanism of this run."""
        check_answers(self)
        setting = Setting(
            seed=self.settings.seed,
            rounds=self.settings.rounds,
            num_clients=self.partition.num_clients,
            schedule=self.schedule,
            work=self.work,
            strategy=self.strategy,
            dataset=self.dataset,
            update_size=sum(
                t.numel() for t in state_of(self.model).values() if t.is_floating_point()
            ),
            deployed=self.engine.deployed,
            smoke=self.smoke is not None,
        )
        with _about("privacy"):
            bound = self.privacy_part.bind(setting)
            return self.plant(self, bound) if self.plant else bound

    @cached_property
    def work(self) -> LocalSGD:
        """How much local work a client does."""
        work = self._part("client", LocalSGD)
        return self.smoke.work(work) if self.smoke else work

    @cached_property
    def attackers(self) -> Attackers:
        """Who is malicious, and what they do."""
        with _about("attack"):
            return self._part("attack", AttackPart).bind(
                num_clients=self.partition.num_clients,
                seed=self.settings.seed,
                dataset=self.dataset,
                client_index=lambda node_id: self.grid.client_index(node_id),
            )

    @cached_property
    def topology(self) -> TopologyPart:
        """Who is linked to whom."""
        part = self._part("topology", TopologyPart)
        check_topology(self, part, self._strategy)
        return part

    @cached_property
    def graph(self) -> nx.Graph:
        """The topology's graph."""
        with _about("topology"):
            return self.topology.graph(self.partition.num_clients, self.settings.seed)

    @cached_property
    def meter(self) -> Meter | None:
        """What measures what rounds take of clients; None without a device profile."""
        if self.fleet is None:
            return None
        count, strategy = self.partition.num_clients, self.strategy
        network = Network(self.topology, count, lambda: self.graph)

        def traffic(exchange: str) -> Traffic:
            if isinstance(strategy, FedsimStrategy):
                return strategy.latest_traffic(exchange)
            return ThroughServer()

        return Meter(self.runtime, self.fleet, network, traffic)

    @cached_property
    def pace(self) -> Pace | None:
        """When training exchanges close; None if all replies are waited for."""
        part = self._part("pace", PacePart)
        if not isinstance(part, Hurried):
            return None
        check_pace(
            part,
            strategy=self.strategy,
            measured=self.meter is not None,
            private=not isinstance(self.privacy_part, NoPrivacy),
            deployed=self.engine.deployed,
            topology=self.topology.kind,
            decomposed=self.settings.evaluation.decomposition,
            target=self.target,
        )
        return None if self.meter is None else Pace(part, self.meter)

    @cached_property
    def compressor(self) -> Compressor | None:
        """What encodes what clients send; None if they send models."""
        codec = self._part("compression", CompressionPart).codec
        if codec is None:
            return None
        named = self.model.named_parameters()
        frozen = frozenset(name for name, parameter in named if not parameter.requires_grad)
        return Compressor(codec=codec, seed=self.settings.seed, frozen=frozen)

    @cached_property
    def runtime(self) -> ClientRuntime:
        """The client side of the run."""
        ours = self.strategy if isinstance(self.strategy, FedsimStrategy) else None
        half = ours.client_half if ours else third_party.half_for(self.strategy)
        return ClientRuntime(
            dataset=self.dataset,
            partition=self.partition,
            holdout=self.partition_part.holdout,
            model=self.model,
            work=self.work,
            half=half,
            estimator=self.protection.estimator,
            protection=self.protection,
            hides_sizes=self.privacy_part.hides_sizes,
            seed=self.settings.seed,
            recipe=recipe.write(self.config, smoke=self.smoke is not None),
            train_targets=self._targets,
            compressor=self.compressor,
        )

    @property
    def _targets(self) -> Callable[[int, Tensor], Tensor] | None:
        """What attackers, then the privacy mechanism, make of the labels that clients train on."""
        attacked, protection = self.attackers.targets, self.protection
        if type(protection).targets is Protection.targets:
            return attacked

        def both(client: int, y: Tensor) -> Tensor:
            return protection.targets(client, attacked(client, y) if attacked else y)

        return both

    @cached_property
    def engine(self) -> EnginePart:
        """What runs the clients."""
        return self._part("engine", EnginePart)

    @cached_property
    def grid(self) -> IndexedGrid:
        """The engine's grid."""
        return self.engine.grid(self.runtime, self.flower_grid)

    def close(self) -> None:
        """Give back what the engine holds beside memory."""
        if "grid" in self.__dict__:
            self.grid.close()

    def check(self) -> None:
        """Build all but what runs the clients, so that mistakes are told at once.

        Raises:
            ConfigError: A part of the scenario cannot be made, or does not go with the others.
        """
        check_parts(self)

    @cached_property
    def loop(self) -> RoundLoop:
        """The round loop, ready to run."""
        self.check()
        rules = self.settings.evaluation
        return RoundLoop(
            strategy=self.strategy,
            grid=self.grid,
            schedule=self.schedule,
            admission=self.settings.admission,
            evaluation=Evaluation(
                central=self._score if rules.central else None,
                clients=rules.clients != "none",
                every=rules.every,
                fused=rules.fused,
            ),
            seed=self.settings.seed,
            last_round=self.last_round,
            tamper=self.attackers.tamper,
            observer=self._observer() if rules.decomposition else None,
            compressor=self.compressor,
            meter=self.meter,
            pace=self.pace,
            protection=self.protection,
            frozen=self.runtime.frozen,
        )

    def _observer(self) -> Observer:
        check_decomposition(self)
        return Decomposition(self.runtime, self.settings.evaluation.batch_size)

    def _part(self, group: str, kind: type[P]) -> P:
        part = build_part(self.config, group)
        if not isinstance(part, kind):
            target = self.target(group)
            raise ConfigError(
                f"{group}._target_: {target} is no {kind.__name__}, as the group '{group}' needs; "
                f"fedsim list {group} shows those that are"
            )
        return part

    def target(self, group: str) -> str:
        """Return the `_target_` of a group's part."""
        return str(self.config.values[group]["_target_"])

    @property
    def _evaluating(self) -> EvaluateWhom:
        whom = self.settings.evaluation.clients
        return "cohort" if self.smoke and whom == "all" else whom

    def findings(self, release: Params) -> Findings | None:
        """Return what a run has found, if its strategy asks."""
        return None if self.asking is None else self.asking.findings(release, self.dataset)

    def _score(self, params: Params) -> dict[str, float]:
        if self.asking is not None:
            return self.asking.score(params, self.dataset)
        data, size = self.dataset, self.settings.evaluation.batch_size
        count = self.smoke.test_samples if self.smoke else len(data.test_y)
        return evaluate(self.runtime, params, data.test_x[:count], data.test_y[:count], size)

    def describe_partition(self) -> dict[str, Any]:
        """Return who holds what, of the clients that a picture shows, as plain data."""
        count = self.partition.num_clients
        shown = shown_clients(count)
        labels = self.dataset.labels()
        classes = int(labels.max()) + 1
        histogram = [
            np.bincount(labels[self.partition.indices(int(k))], minlength=classes).tolist()
            for k in shown
        ]
        malicious = self.attackers.clients.tolist()
        return {
            "num_clients": count,
            "clients": shown.tolist(),
            "histogram": histogram,
            "sizes": self.partition.sizes(shown).tolist(),
            "class_names": list(self.dataset.class_names),
            **({"malicious": malicious} if malicious else {}),
        }


@contextmanager
def _about(group: str) -> Iterator[None]:
    """Put the group's name in front of an error of its part, which does not know its own place."""
    try:
        yield
    except ConfigError as error:
        # An audit, bound in its mechanism's place, says "audit=canaries: ...".
        if str(error).startswith((group, *APART)):
            raise
        raise type(error)(f"{group}.{error}") from error
