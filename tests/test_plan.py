"""`fedsim plan`: the arithmetic by hand, and that nothing is written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.plan import CostPlan, plan
from fedsim.simulation import Simulation

WEIGHTS = 64 * 200 + 200 + 200 * 10 + 10
BYTES = 4 * WEIGHTS


def of(*overrides: str) -> CostPlan:
    return plan(Simulation(compose("quickstart", ["device=cpu", "client.epochs=1", *overrides])))


def test_the_arithmetic_of_a_plan() -> None:
    cost = of("rounds=50", "engine.chunk=7")
    assert (cost.rounds, cost.num_clients, cost.clients_per_round) == (50, 100, 10.0)
    assert (cost.parameters, cost.model_bytes) == (WEIGHTS, BYTES)
    assert cost.messages == 2 * 50 * 10  # there and back
    assert cost.megabytes == pytest.approx(BYTES * 2 * 50 * 10 / 1e6)
    assert 0 < cost.round_seconds < cost.total_seconds
    assert cost.engine == "Cohort: rules, 7 clients at once"
    assert cost.privacy.startswith("none")


def test_operations_by_hand() -> None:
    # A sample of the MLP 64-200-10: forward 2(64*200 + 200*10); backward, the same for the weights
    # and 2*200*10 for the hidden layer's outputs. No gradient of the inputs is taken.
    forward = 2 * (64 * 200 + 200 * 10)
    training = 2 * forward + 2 * 200 * 10
    everyone = ["participation=full", "partition=iid", "rounds=4"]  # all 1347 samples, each once
    cost = of(*everyone, "evaluation.every=2")
    assert cost.flops == pytest.approx(4 * 1347 * training + 2 * 450 * forward, rel=1e-3)
    cost = of(*everyone, "evaluation.central=false", "client.epochs=null", "client.steps=3")
    assert cost.flops == 4 * 100 * 3 * 10 * training


def test_memory_of_a_chunk_and_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = of("rounds=2", "engine.chunk=7")
    outputs = 10 * 4 * (64 + 200 + 200 + 10)  # flatten, linear, activation, linear; batch of 10
    assert (cost.chunk, cost.chunk_bytes) == (7, 2 * 7 * (BYTES + outputs))
    monkeypatch.setattr("fedsim.effort.free_bytes", lambda device: 2 * 5 * (BYTES + outputs) + 1)
    with pytest.raises(ConfigError, match=r"^engine.chunk: 7 clients .*; engine\.chunk=5 fits$"):
        of("rounds=2", "engine.chunk=7")
    monkeypatch.setattr("fedsim.effort.free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="not even one fits; use a smaller model"):
        of("rounds=2", "engine.chunk=7")


def test_an_epsilon_comes_with_its_statement() -> None:
    cost = of("rounds=2")
    assert (cost.epsilon, cost.delta) == (None, None)
    cost = of("rounds=2", "privacy=user_dp", "privacy.epsilon=3", "privacy.delta=0.001")
    assert cost.epsilon == pytest.approx(3, rel=1e-3)
    assert cost.delta == 0.001
    for words in ("per user", "noise multiplier", "accountant", "trust: the server"):
        assert words in cost.privacy


def test_evaluating_clients_get_the_model_and_send_numbers_back() -> None:
    holdout = ["rounds=50", "evaluation.every=20", "partition.holdout=0.2"]
    evaluations = 3  # rounds 20, 40 and 50
    cohort = of(*holdout, "evaluation.clients=cohort")
    assert cohort.messages == 2 * (50 * 10 + evaluations * 10)
    assert cohort.megabytes == pytest.approx(BYTES * (2 * 500 + evaluations * 10) / 1e6)
    everyone = of(*holdout, "evaluation.clients=all")
    assert everyone.messages == 2 * (50 * 10 + evaluations * 100)


def test_what_moves_is_what_the_algorithm_would_move() -> None:
    """Neighbours send to one another; edge servers pass on one model each when it is their turn."""
    gossip = ["strategy=dsgd", "topology=torus", "participation=full", "rounds=5"]
    assert of(*gossip).megabytes == pytest.approx(5 * 100 * 4 * BYTES / 1e6)
    twice = of(*gossip, "strategy=gradient_tracking")
    assert twice.megabytes == pytest.approx(5 * 100 * 4 * 2 * BYTES / 1e6)
    tiers = ["topology=hierarchical", "topology.edge_servers=4", "rounds=5"]
    central = of(*tiers)
    assert central.megabytes == pytest.approx(2 * 5 * 10 * 2 * BYTES / 1e6)
    tiered = of(*tiers, "strategy=hierfavg", "strategy.cloud_period=2")
    assert tiered.megabytes == pytest.approx((5 * 10 * 2 + 2 * 4 * 2) * BYTES / 1e6)


@pytest.mark.parametrize(("rounds", "every", "evaluations"), [(50, 10, 5), (51, 10, 6), (3, 9, 1)])
def test_the_last_round_is_always_evaluated(rounds: int, every: int, evaluations: int) -> None:
    cost = of(f"rounds={rounds}", f"evaluation.every={every}", "partition.holdout=0.2",
              "evaluation.clients=all")  # fmt: skip
    assert cost.messages == 2 * (rounds * 10 + evaluations * 100)


def test_double_precision_is_twice_the_bytes() -> None:
    assert of("precision=float64", "rounds=2").model_bytes == 2 * BYTES


def test_the_length_of_a_run_costs_nothing() -> None:
    started = time.process_time()
    cost = of("rounds=4294967295")
    assert time.process_time() - started < 5
    assert cost.messages == 2 * 10 * 4_294_967_295


def test_rates_are_averaged_over_rounds() -> None:
    cost = of("participation=bernoulli", "participation.rate=0.3", "rounds=1000")
    # 50 rounds of 100 clients: standard deviation of the mean 100 * sqrt(.3 * .7 / 5000) = 0.65
    assert abs(cost.clients_per_round - 30) < 4.417 * 0.65


def test_the_reference_engine_has_no_chunks() -> None:
    assert of("engine=in_process", "rounds=2").engine == "InProcess"


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of("rounds=2")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_would_fail_later_fails_in_the_plan(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("round,client\n1,0\n2,1\n")
    with pytest.raises(ConfigError, match="at_end"):
        of("participation=trace", f"participation.path={trace}", "rounds=50")
