"""Scenarios of questions: the contract of `fedsim.query`, by a strategy that adds up samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.client.answers import AnsweredError, answered
from fedsim.client.whole import Cohort, Worked
from fedsim.config import compose
from fedsim.data.dataset import Dataset
from fedsim.errors import ConfigError
from fedsim.lifecycle import Run
from fedsim.plan import plan
from fedsim.query import Costs, Findings, Graph, QueryHalf, QueryStrategy, Table
from fedsim.records import ARRAYS, CONFIG, QUERY, Params, Replies, to_record
from fedsim.report import html
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke
from fedsim.strategy import Round, State
from tests.helpers import RAGGED, shares

DRAWN: list[int] = []
"""Which clients have made an answer, in the order in which they did."""


class Adds(QueryHalf):
    """Sends a round's column of the samples, added up, and how many samples there are."""

    def run(self, cohort: Cohort) -> Worked:
        DRAWN.extend(cohort.clients.tolist())
        column = int(cohort.start["column"])
        sums = [cohort.inputs(k)[:, column].double().sum() for k in range(len(cohort))]
        total_K = torch.stack(sums) * cohort.arrays["times"]
        return Worked(
            arrays={}, upload={"total": total_K, "count": torch.from_numpy(cohort.counts)}
        )


@dataclass(kw_only=True)
class Totals(QueryStrategy):
    """Adds up the first three columns of all samples, one each round."""

    columns: int = 3

    @property
    def client_half(self) -> Adds:
        return Adds()

    def begin(self, dataset: Dataset, sizes_N: np.ndarray) -> Params:
        if dataset.task == "items":
            raise ConfigError("nothing to add up")
        self.costs = Costs(len(sizes_N))
        return {"totals": torch.zeros(self.columns, dtype=torch.float64)}

    def rounds(self) -> int:
        return self.columns

    def question(self, context: Round) -> Params:
        return {"column": torch.tensor(context.server_round - 1)}

    def asks(self, server_round: int, here: np.ndarray) -> np.ndarray:
        return here[here != 2] if server_round == 3 else here

    def client_payload(self, context: Round) -> Params:
        return {"times": torch.ones(len(context.asked), dtype=torch.float64)}

    def upload_like(self, context: Round) -> Params:
        return {"total": torch.zeros((), dtype=torch.float64), "count": torch.tensor(0)}

    def aggregate(self, context: Round, replies: Replies) -> Params:
        totals = context.params["totals"].clone()
        for chunk in replies.chunks():
            totals[context.server_round - 1] += chunk.client_arrays["total"].sum()
        self.costs.add(context.asked, self.exchanged)
        return {"totals": totals}

    def score(self, release: Params, dataset: Dataset) -> dict[str, float]:
        known = dataset.train_x[:, : self.columns].double().sum(0)
        return {"error": float((release["totals"] - known).abs().max())}

    def findings(self, release: Params, dataset: Dataset) -> Findings:
        table = Table(
            title="Totals <1>", head=("column", "total"), rows=[("0", str(release["totals"][0]))]
        )
        graph = Graph(
            title="A tree",
            caption="Kept and not.",
            nodes={"r": ("", "kept"), "a": ("left", "kept"), "b": ("right", "gone")},
            edges=[("r", "a"), ("r", "b")],
            layers={"r": 0, "a": 1, "b": 1},
            kinds={"kept": "kept", "gone": "pruned"},
        )
        return Findings(tables=[table], graphs=[graph])

    def state_dict(self) -> State:
        return {"bytes": self.costs.bytes_N}

    def load_state_dict(self, state: State) -> None:
        self.costs.bytes_N = np.asarray(state["bytes"])


WORDS = ["model=none", "participation=full", "rounds=3", "checkpoint.every=1", "device=cpu"]
WORDS += [f"partition.num_clients={len(RAGGED)}"]


def build(*words: str, smoke: Smoke | None = None) -> Simulation:
    simulation = Simulation(compose("quickstart", [*WORDS, *words]), smoke)
    simulation.__dict__["_strategy"] = Totals()
    simulation.partition = shares(simulation.dataset, RAGGED)
    return simulation


def start(root: Path, *words: str) -> Run:
    simulation = build(*words, f"output.root={root}")
    return Run(simulation=simulation, folder=RunFolder.create(simulation.config))


def expected(simulation: Simulation) -> torch.Tensor:
    rows = np.concatenate([simulation.partition.indices(k) for k in range(len(RAGGED))])
    totals = simulation.dataset.train_x[rows, :3].double().sum(0)
    totals[2] -= simulation.dataset.train_x[simulation.partition.indices(2), 2].double().sum()
    return totals


@pytest.mark.parametrize(
    "engine", [["engine=cohort", "engine.chunk=3"], ["engine=in_process"],
               ["engine=in_process", "engine.wire_check=true"]]
)  # fmt: skip
def test_every_engine_carries_questions_and_answers(engine: list[str]) -> None:
    simulation = build(*engine)
    grid, sent = simulation.grid, []
    carry = grid.send_and_receive

    def spy(messages, **rest):
        sent.append(messages)
        return carry(messages, **rest)

    grid.send_and_receive = spy
    reports = list(simulation.loop.run(simulation.runtime.initial_params()))
    assert [messages[0].metadata.message_type for messages in sent] == [QUERY] * 3
    release, last = reports[-1]
    assert torch.allclose(release["totals"], expected(simulation), rtol=1e-12)
    assert release["totals"].dtype == torch.float64
    # Client 3 holds nothing and does not take part; client 2 is not asked at the end.
    assert [sorted(report.admitted) for _, report in reports[1:]] == [
        [0, 1, 2, 4, 5, 6, 7],
        [0, 1, 2, 4, 5, 6, 7],
        [0, 1, 4, 5, 6, 7],
    ]
    assert last.central.keys() == {"error"}
    assert not last.train.keys() - {"num-examples"}


def test_a_run_has_its_folder_and_its_report(tmp_path: Path) -> None:
    run = start(tmp_path)
    list(run.start())
    found = json.loads((run.folder.path / "findings.json").read_text())
    assert found["tables"][0]["head"] == ["column", "total"]
    text = html.write_report(run.folder.path).read_text()
    assert "What was found" in text and "Totals &lt;1&gt;" in text
    assert "left" in text and "pruned" in text
    (run.folder.path / "findings.json").write_text('{"graphs": [{"nodes": 3}], "tables": [4]}')
    assert "its data are damaged" in html.write_report(run.folder.path).read_text()


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    whole = start(tmp_path)
    list(whole.start())
    stops = iter([False, True])
    cut = start(tmp_path)
    cut.stop = lambda: next(stops)
    assert len(list(cut.start())) == 2
    folder = RunFolder.open(cut.folder.path)
    rest = Run(simulation=build(f"output.root={tmp_path}"), folder=folder)
    assert [report.server_round for report in rest.resume()] == [2, 3]
    ends = [(run.folder.path / "model.safetensors").read_bytes() for run in (whole, rest)]
    assert ends[0] == ends[1]
    costs = [run.simulation.strategy.costs.bytes_N for run in (whole, rest)]
    assert np.array_equal(*costs)
    # Column, times, total and count, 8 bytes each; client 3 holds nothing and is not asked.
    assert costs[0].tolist() == [96.0, 96.0, 64.0, 0.0, *[96.0] * 4]


def test_a_smoke_run_and_a_plan() -> None:
    smoke = build(smoke=Smoke())
    *_, (_, report) = smoke.loop.run(smoke.runtime.initial_params())
    assert report.asked == 2
    cost = plan(build())
    assert (cost.rounds, cost.num_clients, cost.messages) == (3, len(RAGGED), 42)
    assert cost.megabytes == pytest.approx(3 * 7 * 32 / 1e6)


def question(column: int, server_round: int = 1) -> Message:
    content = RecordDict(
        {
            ARRAYS: to_record({"column": torch.tensor(column)}, zero_copy=False),
            CONFIG: ConfigRecord({"server-round": server_round, "client-index": 4}),
            "client-arrays": to_record({"times": torch.tensor(1.0)}, zero_copy=False),
        }
    )
    return Message(content, 1, QUERY)


@pytest.mark.parametrize("zero_copy", [True, False])
def test_an_answer_is_made_once_and_kept(zero_copy: bool) -> None:
    simulation = build("engine=in_process")
    grid, runtime = simulation.grid, simulation.runtime
    context = grid.context(4)

    def ask(message: Message) -> RecordDict:
        return answered(lambda _: runtime, message, context, 4, zero_copy=zero_copy)

    DRAWN.clear()
    first = ask(question(0))
    grid.keep_state(4, context)  # another process goes on from what Flower has kept
    context = grid.context(4)
    again = ask(question(0))
    assert DRAWN == [4]
    for record in first.array_records:
        values = [{n: a.numpy().tobytes() for n, a in content.array_records[record].items()}
                  for content in (first, again)]  # fmt: skip
        assert values[0] == values[1]
    assert first.metric_records["metrics"] == again.metric_records["metrics"]
    with pytest.raises(AnsweredError, match="client 4 has answered another question in round 1"):
        ask(question(1))
    ask(question(1, server_round=2))
    assert DRAWN == [4, 4]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["rounds=4"], "rounds: 4, but the questions of Totals take 3 here; set rounds=3"),
        (["model=mlp"], "set model=none"),
        (["partition.holdout=0.2"], "partition.holdout=0.2: Totals trains no model"),
        (["attack=sign_flip"], "set attack=none"),
        (["evaluation.decomposition=true"], "set evaluation.decomposition=false"),
        (["partition.holdout=0.2", "evaluation.clients=all"], "set evaluation.clients=none"),
        (["privacy=label_dp"], "use privacy=none"),
        (["privacy=user_dp"], "use privacy=none"),
    ],
)
def test_what_only_training_has_is_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(*words).check()


def test_training_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="choose a model"):
        Simulation(compose("quickstart", ["model=none"])).check()
