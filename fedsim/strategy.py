"""The server half of an algorithm: a standard Flower `Strategy`, addressed by client index.

An algorithm overrides `aggregate` (and, where it has them, `client_half`, `client_payload`,
`state_dict`, `load_state_dict`); everything that Flower calls is here, once. Any strategy of ours
can be dropped into a plain Flower `ServerApp`: then every node that is connected takes part in
every round, under the index it was first seen with; nodes that have left count as clients still.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedsim.admission import Admission, AdmittedReplies
from fedsim.client.half import ClientHalf
from fedsim.data.dataset import ServerData
from fedsim.errors import ConfigError, ResumeError, TooFewClientsError
from fedsim.models.structure import Layer
from fedsim.participation.base import Schedule
from fedsim.parts import check_fields
from fedsim.records import Instructions, Params, PayloadOf, Replies, to_record, to_tensors
from fedsim.topology.base import TopologyKind
from fedsim.topology.traffic import ThroughServer, Traffic

if TYPE_CHECKING:
    import networkx as nx

log = logging.getLogger(__name__)

State = dict[str, Tensor | np.ndarray | int | float]
"""A strategy's state: plain arrays and numbers; the checkpoint is exactly this."""

CONNECT_S = 60.0
"""Outside simulation: how long to wait for the first node, or for all of a scenario's clients."""

EvaluateWhom = Literal["none", "cohort", "all"]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What a simulation tells its strategy about the run.

    Attributes:
        num_clients: N; clients are 0..N-1.
        seed: The scenario's.
        schedule: Who takes part when.
        evaluate: Which clients evaluate: nobody, this round's participants, or everybody.
        layers: The model's layers that hold tensors, in order; None if nobody knows.
        lr_at: The clients' learning rate in a round (1, 2, ...); None if the server is not told.
        trainable: Names of the tensors that clients train, the rest being buffers and frozen; None
            if the server is not told.
        model: The architecture, for strategies that train on the server's own data; its weights are
            never read. None if nobody knows.
        server_data: What the server has of its own, labelled; None if there is none.
        graph: Makes the topology's graph (once); None if nobody knows.
        latencies: Gives each client's simulated seconds of a round's work, float64 `[N]`; None, as
            what it gives, if nobody knows.
    """

    num_clients: int
    seed: int
    schedule: Schedule
    evaluate: EvaluateWhom = "none"
    layers: tuple[Layer, ...] | None = None
    lr_at: Callable[[int], float] | None = None
    trainable: Callable[[], Collection[str]] | None = None
    model: nn.Module | None = None
    server_data: ServerData | None = None
    graph: Callable[[], nx.Graph] | None = None
    latencies: Callable[[], np.ndarray | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """The context of one aggregation.

    Attributes:
        server_round: 1, 2, ...
        num_clients: N, the whole population.
        asked: Client indices that were asked this round, sorted; may be empty.
        params: The global model that they were sent.
    """

    server_round: int
    num_clients: int
    asked: np.ndarray
    params: Params


class FedsimStrategy(Strategy, abc.ABC):
    """Base of our strategies; sub-classes are `@dataclass(kw_only=True)`, fields = YAML keys."""

    federation: Federation | None = None
    of_mean_only: ClassVar[bool] = False
    """Whether `aggregate` depends on nothing but the weighted mean of the updates. A mechanism that
    protects whole clients hands such a strategy one reply, the noisy mean."""
    sends_model: ClassVar[bool] = True
    """Whether clients are sent the global model. If not, their messages' `arrays` are empty, and
    what `client_payload` addresses to each is its model, under the model's names."""
    topologies: ClassVar[frozenset[TopologyKind]] = frozenset({"star", "hierarchical"})
    """Kinds of topology that it can run on. A central strategy needs a server; edge servers, where
    there are some, then pass on what they are sent."""

    away: np.ndarray | None = None
    """Whom the round loop does not let it ask to train: clients whose replies are still to come."""

    def __post_init__(self) -> None:
        check_fields(self)

    # --- what an algorithm overrides ---------------------------------------------------------

    @property
    def client_half(self) -> ClientHalf:
        """What the algorithm changes in a client's local work."""
        return ClientHalf()

    def chosen(self, server_round: int, offered: np.ndarray) -> np.ndarray:
        """Return whom to ask, sorted, of those who take part in a round."""
        return offered

    def client_payload(self, context: Round) -> Params | PayloadOf:
        """Return what differs from client to client, name -> `[len(asked), ...]`.

        Where that is large, a function from client indices to their rows: an engine asks it for a
        few clients at a time, each of them before its reply is drawn.
        """
        return {}

    def evaluation_payload(self, context: Round) -> Params | PayloadOf:
        """Return the same for those who evaluate, where clients score models of their own."""
        return {}

    def upload_like(self, context: Round) -> Mapping[str, Tensor]:
        """Return an example of what `client_half.upload` sends, for admission to compare with."""
        return {}

    def traffic(self, context: Round, exchange: str) -> Traffic:
        """Return what an exchange, "train" or "evaluate", moves in the network it is made for."""
        return ThroughServer()

    @abc.abstractmethod
    def aggregate(self, context: Round, replies: Replies) -> Params:
        """Return the next global model; called for empty rounds too.

        `replies` holds admitted replies only, and may be drawn once.
        """

    def diagnostics(self) -> dict[str, float]:
        """Return what the algorithm says of the round that has ended, by name.

        Asked for in rounds that are evaluated; shown beside their metrics, and used by nothing.
        """
        return {}

    def state_dict(self) -> State:
        """Return all state that the next round depends on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: The state is not this strategy's.
        """
        if state:
            raise ResumeError(
                f"the checkpoint holds strategy state {sorted(state)}, "
                f"but {type(self).__name__} has none; was the strategy changed?"
            )

    # --- what Flower calls -------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Instructions:
        """Address this round's participants, each with its own payload."""
        nodes = self._nodes(grid)
        if self.federation is not None:
            asked = self.federation.schedule.select(server_round)
        else:
            asked = nodes.connected()
        if self.away is not None:
            asked = asked[~np.isin(asked, self.away)]
        asked = self.chosen(server_round, asked)
        self._zero_copy = bool(getattr(grid, "zero_copy", False))
        self._round = Round(
            server_round=server_round,
            num_clients=nodes.count,
            asked=asked,
            params=to_tensors(arrays),
        )
        self._sent = self._instructions(
            MessageType.TRAIN,
            server_round,
            nodes,
            asked,
            arrays,
            config,
            self.client_payload(self._round),
        )
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit the replies, aggregate them, and average their metrics."""
        admitted = replies
        if not isinstance(admitted, Replies):
            admitted = Admission().admit(
                self._sent, replies, self.expected_arrays, self.expected_upload
            )
        params = self.aggregate(self._round, admitted)
        return to_record(params, zero_copy=self._zero_copy), _metric_record(admitted)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Instructions:
        """Address those who evaluate; nobody, outside a simulation."""
        nodes = self._nodes(grid)
        asked = np.arange(0)
        if self.federation is not None and self.federation.evaluate == "all":
            asked = nodes.connected()
        elif self.federation is not None and self.federation.evaluate == "cohort":
            asked = self.federation.schedule.select(server_round)
        self._zero_copy = bool(getattr(grid, "zero_copy", False))
        context = Round(
            server_round=server_round,
            num_clients=nodes.count,
            asked=asked,
            params=to_tensors(arrays),
        )
        self._sent_evaluate = self._instructions(
            MessageType.EVALUATE,
            server_round,
            nodes,
            asked,
            arrays,
            config,
            self.evaluation_payload(context),
        )
        return self._sent_evaluate

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' metrics, weighted by their samples."""
        admitted = replies
        if not isinstance(admitted, AdmittedReplies):
            admitted = Admission().admit(self._sent_evaluate, replies, None)
        for _ in admitted.chunks():
            pass
        return _metric_record(admitted)

    def summary(self) -> None:
        """Log the strategy's settings, as Flower's `start` asks for."""
        for field in fields(self):  # type: ignore[arg-type]
            log.info("%s.%s = %r", type(self).__name__, field.name, getattr(self, field.name))

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        """What admission expects in this round's replies where a model goes: one like this."""
        return self._round.params

    @property
    def expected_upload(self) -> Mapping[str, Tensor]:
        """What admission expects beside the model in this round's replies."""
        return self.upload_like(self._round)

    def latest_traffic(self, exchange: str) -> Traffic:
        """Return what an exchange of the latest round moves; see `traffic`."""
        return self.traffic(self._round, exchange)

    # --- helpers -----------------------------------------------------------------------------

    @property
    def model_layers(self) -> tuple[Layer, ...]:
        """The model's layers.

        Raises:
            ConfigError: Nobody has told.
        """
        if self.federation is None or self.federation.layers is None:
            raise ConfigError(
                f"{type(self).__name__} must know the layers of the model, as a fedsim simulation "
                "tells it; elsewhere, set strategy.federation = Federation(..., "
                "layers=fedsim.models.structure.layers_of(model))"
            )
        return self.federation.layers

    @property
    def graph(self) -> nx.Graph:
        """The topology's graph.

        Raises:
            ConfigError: Nobody has told.
        """
        if self.federation is None or self.federation.graph is None:
            raise ConfigError(
                f"{type(self).__name__} must know who is linked to whom, as a fedsim simulation "
                "tells it; elsewhere, set strategy.federation = Federation(..., graph=...)"
            )
        return self.federation.graph()

    @property
    def latencies(self) -> np.ndarray:
        """How long each client would be busy with a round's work, seconds `[N]`.

        Raises:
            ConfigError: Nobody has told.
        """
        told = None if self.federation is None else self.federation.latencies
        seconds_N = None if told is None else told()
        if seconds_N is None:
            raise ConfigError(
                f"{type(self).__name__} must know how long each client takes, as a fedsim "
                "simulation tells it; set devices=unequal (or equal); if that is set, the run's "
                "log says why operations cannot be counted; elsewhere, set strategy.federation = "
                "Federation(..., latencies=...)"
            )
        return seconds_N

    def trained(self, params: Params) -> Params:
        """Return the part of a model that clients train, as far as the server knows.

        Control variates and the like are of these; buffers are averaged.
        """
        named = None if self.federation is None else self.federation.trainable
        if named is None:
            return {name: t for name, t in params.items() if t.is_floating_point()}
        names = named()
        return {name: tensor for name, tensor in params.items() if name in names}

    def _instructions(
        self,
        message_type: str,
        server_round: int,
        nodes: _Nodes,
        asked: np.ndarray,
        arrays: ArrayRecord,
        config: Mapping[str, object],
        payload: Params | PayloadOf,
    ) -> Instructions:
        seed = 0 if self.federation is None else self.federation.seed
        return Instructions(
            message_type=message_type,
            server_round=server_round,
            client_index=asked,
            node_ids=nodes.ids(asked),
            arrays=arrays if self.sends_model else ArrayRecord(),
            config={**config, "seed": seed, "num-clients": nodes.count},  # type: ignore[dict-item]
            client_arrays=payload,
            zero_copy=self._zero_copy,
        )

    def _nodes(self, grid: Grid) -> _Nodes:
        federation, node_ids = self.federation, getattr(grid, "node_ids", None)
        if federation is not None and node_ids is not None:
            count = federation.num_clients
            return _Nodes(count, lambda: np.arange(count), node_ids)
        known: list[int] = self.__dict__.setdefault("_known_nodes", [])
        here = _connected(grid, known, 1 if federation is None else federation.num_clients)
        known += sorted(here.difference(known))
        table = np.array(known, dtype=np.uint64)  # Flower's ids use all 64 bits
        connected = np.flatnonzero([node in here for node in known])
        if federation is None:
            return _Nodes(len(known), lambda: connected, lambda index: table[index])
        connected = connected[connected < federation.num_clients]
        return _Nodes(federation.num_clients, lambda: connected, lambda index: table[index])


@dataclass(frozen=True)
class _Nodes:
    """Client index -> node id, for a population of any size."""

    count: int
    connected: Callable[[], np.ndarray]
    ids: Callable[[np.ndarray], np.ndarray]


def _connected(grid: Grid, known: list[int], minimum: int) -> set[int]:
    """Return the connected nodes, once there have been `minimum` in all.

    A `ServerApp` starts before its nodes have connected.
    """
    deadline = time.monotonic() + CONNECT_S
    while len((here := set(grid.get_node_ids())).union(known)) < minimum:
        if time.monotonic() > deadline:
            raise TooFewClientsError(
                f"{len(here)} nodes have connected within {CONNECT_S:g} s, but {minimum} are "
                "needed; start more of them, or lower partition.num_clients"
            )
        time.sleep(min(1.0, CONNECT_S / 10))
    return here


def _metric_record(replies: Replies) -> MetricRecord | None:
    means = replies.mean_metrics() if isinstance(replies, AdmittedReplies) else {}
    return MetricRecord(dict(means)) if means else None
