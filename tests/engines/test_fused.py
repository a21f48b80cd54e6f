"""Clients score the model that they receive within their training replies: one exchange less."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.config import compose
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.plan import plan
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation

SMALL = [
    *("rounds=4", "partition.num_clients=8", "partition.holdout=0.25", "participation=full"),
    *("model.hidden=[8]", "evaluation.clients=cohort", "evaluation.central=false"),
    *("client.batch_size=50", "client.lr=0.3"),
]
ENGINES = ["engine=in_process", "engine=cohort", "engine.wire_check=true"]


def reports(*words: str) -> list[RoundReport]:
    simulation = Simulation(compose("quickstart", [*SMALL, *words]))
    loop = simulation.loop
    return [report for _, report in loop.run(simulation.runtime.initial_params())]


def engine(name: str) -> list[str]:
    return ["engine=in_process", name] if name.startswith("engine.") else [name]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("strategy", ["fedavg", "fedau", "flower_fedavg", "fedper", "ditto"])
def test_scores_of_a_round_are_those_of_the_round_before(strategy: str, name: str) -> None:
    """With everybody taking part, round r's fused scores are round r - 1's of an exchange."""
    words = [f"strategy={strategy}", *engine(name)]
    apart, fused = reports(*words), reports(*words, "evaluation.fused=true")
    assert [r.train for r in fused] == [pytest.approx(r.train, rel=1e-12) for r in apart]
    assert all(report.clients["num-examples"] > 0 for report in fused)
    if strategy == "ditto":  # a client's own model is that of its last training, in both
        return
    for now, before in zip(fused[1:], apart, strict=False):
        assert set(now.clients) == set(before.clients) == {"loss", "accuracy", "num-examples"}
        assert now.clients == pytest.approx(before.clients, rel=1e-5)
        assert set(now.per_client) == set(before.per_client)
        for column, values in before.per_client.items():
            assert now.per_client[column] == pytest.approx(values, rel=1e-4)
    assert fused[0].clients["accuracy"] < fused[-1].clients["accuracy"]


def test_ragged_clients_in_part_agree_between_engines() -> None:
    """Some clients hold too little to have held-out samples; they train, and score nothing."""
    words = ["participation=uniform", "participation.clients_per_round=10"]
    words += [
        "evaluation.fused=true",
        "partition=iid",
        "partition.num_clients=400",
        "evaluation.every=2",
    ]
    one, other = (reports(*words, f"engine={name}") for name in ("in_process", "cohort"))
    scored = 0
    for a, b in zip(one, other, strict=True):
        assert bool(a.clients) == (a.server_round % 2 == 0)
        assert a.clients == pytest.approx(b.clients, rel=1e-4)
        names = ("client-index", "loss")
        columns = [
            dict(zip(*(r.per_client.get(name, []) for name in names), strict=True)) for r in (a, b)
        ]
        assert columns[0] == pytest.approx(columns[1], rel=1e-4)
        assert all(count > 0 for count in a.per_client.get("num-examples", []))
        scored += len(columns[0])
    assert 0 < scored < sum(len(report.admitted) for report in one[1::2])


def test_it_saves_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges: list[str] = []
    for part in (Cohort, InProcess):
        grid = part.grid

        def counted(self: Any, *words: Any, grid: Any = grid) -> Any:
            made = grid(self, *words)
            send = made.send_and_receive

            def note(messages: Any, **more: Any) -> Any:
                exchanges.append(messages.message_type)
                return send(messages, **more)

            made.send_and_receive = note
            return made

        monkeypatch.setattr(part, "grid", counted)
    reports()
    assert exchanges == ["train", "evaluate"] * 4
    exchanges.clear()
    reports("evaluation.fused=true")
    assert exchanges == ["train"] * 4
    costs = [
        plan(Simulation(compose("quickstart", [*SMALL, f"evaluation.fused={fused}"]))).messages
        for fused in ("false", "true")
    ]
    assert costs == [2 * 4 * 16, 4 * 16]


@pytest.mark.parametrize("clients", ["none", "all"])
def test_only_those_who_train_can(clients: str) -> None:
    with pytest.raises(ConfigError, match=r"fused.*clients=cohort"):
        compose("quickstart", [f"evaluation.clients={clients}", "evaluation.fused=true"])
