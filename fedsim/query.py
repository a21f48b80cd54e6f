"""Analytics: a strategy that trains nothing, but asks its clients questions and releases an answer.

    round r:  strategy.question ─▶ query.answer ─▶ ClientHalf.run ─▶ strategy.aggregate ─▶ release

Everything else is as in training: engines, participation, admission, ledger, run folder, report.
The place of the model is taken by the *release*: tensors of fixed names, shapes and dtypes
(`begin`), which every round may improve, which checkpoints and the run folder hold, and which
`score` compares with the truth where a simulation knows it. Clients never see it: what they get is
the round's question, arrays of any shape, and what is addressed to each of them alone.

Whatever leaves a client leaves it once. A client app keeps its answer to a round, and sends the
same bytes again where the same question comes again; another question in the same round is refused.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedsim.client.half import ClientHalf
from fedsim.config.settings import Evaluation
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.records import QUERY, Instructions, Params, to_record, to_tensors
from fedsim.strategy import FedsimStrategy, Round


class QueryHalf(ClientHalf, abc.ABC):
    """A client half that answers questions: `run` is all that it does, and it needs no model.

    In `run`, `cohort.start` is the question, `cohort.arrays` what is addressed to each client, and
    what is sent back goes into `Worked.upload`; `Worked.arrays` stays empty.
    """

    queried = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A directed graph of a report, drawn layer by layer from the left.

    Attributes:
        title, caption: Over and under it.
        nodes: Name -> (label, kind); names are unique, labels need not be.
        edges: Pairs of names.
        layers: Name -> its layer, 0, 1, ...
        kinds: Kind -> what it means, in the order of the legend, the first three of which have
            colours of their own: good, neutral, bad.
    """

    title: str
    caption: str
    nodes: Mapping[str, tuple[str, str]]
    edges: Sequence[tuple[str, str]]
    layers: Mapping[str, int]
    kinds: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a run found, for its reader; written to `findings.json`."""

    tables: Sequence[Table] = ()
    graphs: Sequence[Graph] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "tables": [
                {"title": t.title, "head": list(t.head), "rows": [list(row) for row in t.rows]}
                for t in self.tables
            ],
            "graphs": [
                {
                    "title": g.title,
                    "caption": g.caption,
                    "nodes": {name: list(node) for name, node in g.nodes.items()},
                    "edges": [list(edge) for edge in g.edges],
                    "layers": dict(g.layers),
                    "kinds": [list(pair) for pair in g.kinds.items()],
                }
                for g in self.graphs
            ],
        }


@dataclass(kw_only=True)
class QueryStrategy(FedsimStrategy, abc.ABC):
    """Base of the strategies that ask."""

    exchanged: ClassVar[float] = 0.0
    """Bytes of the last round's question and answer, of one client, without framing."""

    # --- what an analysis overrides --------------------------------------------------------------

    @abc.abstractmethod
    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        """Return an empty release, having seen the kind of the data and the sizes of the clients.

        Never the data's values. Called once, before anything else.

        Raises:
            ConfigError: There is nothing in such data to ask for.
        """

    @abc.abstractmethod
    def rounds(self) -> int:
        """Return how many rounds the questions take."""

    def question(self, context: Round) -> Params:
        """Return what all clients of this round are sent."""
        return {}

    def asks(self, server_round: int, here: np.ndarray) -> np.ndarray:
        """Return which of this round's participants are asked; by default, all of them."""
        return here

    def score(self, release: Params, dataset: Dataset) -> dict[str, float]:
        """Compare a release with the truth, as only a simulation can; and count what it cost."""
        return {}

    def findings(self, release: Params, dataset: Dataset) -> Findings:
        """Say what was found, for the report."""
        return Findings()

    # --- what the round loop calls ---------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Instructions:
        """Address the round's question to those that it is for."""
        nodes = self._nodes(grid)
        here = nodes.connected()
        if self.federation is not None:
            here = self.federation.schedule.select(server_round)
        self._zero_copy = bool(getattr(grid, "zero_copy", False))
        self._round = Round(
            server_round=server_round,
            num_clients=nodes.count,
            asked=self.asks(server_round, here),
            params=to_tensors(arrays),
        )
        question, own = self.question(self._round), self.client_payload(self._round)
        rows = own(self._round.asked[:1]) if callable(own) else own
        one = [t[0] for t in rows.values() if len(t)]
        parts = (*question.values(), *one, *self.expected_upload.values())
        self.__dict__["exchanged"] = float(sum(part.nbytes for part in parts))
        self._sent = self._instructions(
            QUERY,
            server_round,
            nodes,
            self._round.asked,
            to_record(question, zero_copy=self._zero_copy),
            config,
            own,
        )
        return self._sent

    @property
    def expected_arrays(self) -> Mapping[str, Tensor]:
        """See `FedsimStrategy.expected_arrays`: clients send no model."""
        return {}


class Released(nn.Module):
    """The release, where a run has its model: buffers, nothing to train, nothing to call.

    Args:
        release: Names, shapes, dtypes and first values.
    """

    def __init__(self, release: Params) -> None:
        super().__init__()
        for name, tensor in release.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Refuse: there is no model.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("a run that asks questions has no model")


def check_scenario(
    strategy: QueryStrategy,
    *,
    rounds: int | None,
    settings: Evaluation,
    holdout: float,
    attacked: bool,
) -> None:
    """Check that a scenario asks for nothing that only training has.

    Args:
        strategy: That of the scenario, begun.
        rounds: The scenario's; None where it is cut down.
        settings: The scenario's, of evaluation.
        holdout: Of the partition.
        attacked: Whether there are attackers, who know how to change models only.

    Raises:
        ConfigError: It does; or it has other rounds than the questions take.
    """
    name = type(strategy).__name__
    if rounds is not None and rounds != strategy.rounds():
        raise ConfigError(
            f"rounds: {rounds}, but the questions of {name} take {strategy.rounds()} here; set "
            f"rounds={strategy.rounds()}"
        )
    of_training = (
        (settings.clients != "none", f"evaluation.clients={settings.clients}", "none"),
        (settings.decomposition, "evaluation.decomposition=true", "false"),
        (attacked, "attack=(another than none)", "none"),
        (holdout > 0, f"partition.holdout={holdout:g}", "0"),
    )
    for given, what, instead in of_training:
        if given:
            key = what.partition("=")[0]
            raise ConfigError(
                f"{what}: {name} trains no model, which this is about; set {key}={instead}"
            )


class Costs:
    """What has crossed the links of each client, counted by a strategy as it goes.

    Attributes:
        bytes_N: Both ways, float64; part of the strategy's state.
    """

    def __init__(self, num_clients: int) -> None:
        self.bytes_N = np.zeros(num_clients)

    def add(self, clients: np.ndarray, exchanged: float) -> None:
        """Count an exchange of so many bytes with each of some clients `[K]`."""
        self.bytes_N[clients] += exchanged
