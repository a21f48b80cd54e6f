"""What a pace goes with, beside what tests/golden/errors.txt pins, and how it is told."""

from __future__ import annotations

import pytest

from fedsim.config import Config, compose
from fedsim.errors import ConfigError
from fedsim.plan import plan
from fedsim.progress import describe
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation

SMALL = ["device=cpu", "partition.num_clients=8", "participation.clients_per_round=6",
         "model.hidden=[4]"]  # fmt: skip
EQUAL, FIRST = "devices=equal", "pace=over_selection"
KEEP = [EQUAL, "pace=deadline", "pace.late=keep"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([EQUAL, FIRST, "privacy=dp_sgd"], "privacy=none, or pace=patient"),
        ([EQUAL, FIRST, "privacy=local_dp"], "privacy=none, or pace=patient"),
        ([EQUAL, FIRST, "strategy=dsgd", "topology=ring"], "no server .* set pace=patient"),
        ([EQUAL, FIRST, "engine=deployment"], "set pace=patient and admission.timeout_s"),
        ([*KEEP, "strategy=scaffold"], "use pace.late=drop"),
        ([*KEEP, "strategy=flower_fedavg"], "use pace.late=drop"),
        ([*KEEP, "strategy=median"], "use pace.late=drop"),
        ([*KEEP, "evaluation.decomposition=true"], "decomposition=false, or pace.late=drop"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_hurried_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Simulation(compose("quickstart", [*SMALL, *words])).check()


def test_questions_cannot_be_hurried() -> None:
    with pytest.raises(ConfigError, match=r"asks questions.* set pace=patient"):
        Simulation(compose("heavy_hitters", ["device=cpu", EQUAL, FIRST])).check()


@pytest.mark.parametrize("strategy", ["fedau", "scaffold", "median", "hierfavg"])
def test_any_strategy_of_exchanges_can_do_without_the_late(strategy: str) -> None:
    words = [*SMALL, f"strategy={strategy}", "devices=unequal", "pace=over_selection", "rounds=2"]
    if strategy == "hierfavg":
        words += ["topology=hierarchical", "topology.edge_servers=2"]
    simulation = Simulation(compose("quickstart", words))
    *_, (_, report) = simulation.loop.run(simulation.runtime.initial_params())
    assert (report.asked, len(report.admitted), report.late) == (6, 5, 1)
    assert not report.rejected


def test_a_scenario_of_before_there_was_a_pace_is_patient_and_has_the_same_hash() -> None:
    config = compose("quickstart", [])
    before = Config(config.scenario, config.overrides, {**config.values})
    del before.values["pace"]
    assert Config.from_yaml(before.to_yaml()).values == config.values
    assert before.hash == config.hash != compose("quickstart", ["pace=deadline"]).hash


def test_late_replies_are_in_the_line_of_a_round() -> None:
    report = RoundReport(server_round=3, asked=4, admitted=[0, 2, 3, 7], late=1, arrived_late=1)
    assert describe(report, 9, {}) == "round 3/9  replies 3/4  late 1  arrived late 1"


def test_the_plan_says_how_many_are_on_time() -> None:
    words = [*SMALL, "rounds=2", "devices=equal", "pace=over_selection", "pace.late=keep"]
    told = plan(Simulation(compose("quickstart", words))).pace
    assert told.startswith("of 6 asked, 5 are used after ") and "(round 1)" in told
