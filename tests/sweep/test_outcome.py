"""What a run has come to; an epsilon only with its terms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedsim.sweep.outcome import TERMS as NAMES
from fedsim.sweep.outcome import Outcome, Watch, epsilon_of, read_outcome

from .made_up import TERMS, private, write_run


def test_a_run_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "r", 0.8, private(2.0))
    outcome = read_outcome(tmp_path / "r")
    assert (outcome.status, outcome.server_round) == ("finished", 2)
    assert (outcome.group, outcome.name, outcome.value) == ("central", "accuracy", 0.8)
    assert outcome.metrics == {"central.accuracy": (0.8, 2), "central.loss": (1.0, 2)}
    assert outcome.epsilon is not None and outcome.epsilon.value == 2.0
    assert outcome.epsilon.meaning == (
        "delta 1e-05, unit: user, neighbours: add or remove one, sampling: Poisson, rate 0.1, "
        "accountant: PLD"
    )
    assert outcome.seconds == 1.5 and outcome.commit == "a" * 40


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) == Outcome()
    for name in ("summary.json", "privacy.json", "env.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{damaged")
    assert read_outcome(tmp_path) == Outcome()


@pytest.mark.parametrize("missing", NAMES)
def test_an_epsilon_without_one_of_its_terms_is_not_shown(missing: str) -> None:
    for value in (None, "", " ", []):
        epsilon, why = epsilon_of({**private(1.0), missing: value}, [])
        assert epsilon is None and why is not None and missing in why
    terms = {key: value for key, value in TERMS.items() if key != missing}
    assert epsilon_of({"epsilon": 1.0, **terms}, [])[0] is None


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_what_is_no_guarantee(value: float) -> None:
    for epsilon, why in (epsilon_of(private(value), []), epsilon_of(private(2.0), [value])):
        assert epsilon is None and why is not None


@pytest.mark.parametrize("delta", [1.0, -0.1, math.nan, "1e-5"])
def test_a_delta_that_is_none(delta: Any) -> None:
    epsilon, why = epsilon_of(private(1.0, delta=delta), [])
    assert epsilon is None and why is not None and "delta" in why


def test_where_plan_and_count_differ_the_larger_epsilon_holds(tmp_path: Path) -> None:
    for spent, expected in ((None, 2.0), (1.5, 2.0), (2.5, 2.5)):
        epsilon, _ = epsilon_of(private(2.0), [spent])
        assert epsilon is not None and epsilon.value == expected
    assert epsilon_of({"statement": "none"}, [None]) == (None, None)
    write_run(tmp_path / "r", 0.8, private(2.0))
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"server_round": 3, "epsilon": 2.25}) + "\n")
    outcome = read_outcome(tmp_path / "r")
    assert outcome.epsilon is not None and outcome.epsilon.value == 2.25


def test_a_run_that_ended_claims_what_it_spent(tmp_path: Path) -> None:
    """One that stopped at its budget has not cost what all of its rounds would have."""
    write_run(tmp_path / "r", 0.8, private(12.0, best_of={"10": 20.0}))
    end = {"status": "budget", "server_round": 2, "privacy": private(7.5)}
    (tmp_path / "r" / "summary.json").write_text(json.dumps(end))
    outcome = read_outcome(tmp_path / "r")
    assert outcome.epsilon is not None and outcome.epsilon.value == 7.5
    assert outcome.privacy["best_of"] == {"10": 20.0}
    end["privacy"] = {"statement": "none"}
    (tmp_path / "r" / "summary.json").write_text(json.dumps(end))
    outcome = read_outcome(tmp_path / "r")
    assert outcome.epsilon is not None and outcome.epsilon.value == 12.0


def test_whom_one_must_trust_is_part_of_what_is_promised() -> None:
    central, _ = epsilon_of(private(1.0, trust="the server"), [])
    local, _ = epsilon_of(private(1.0, trust="nobody"), [])
    other, _ = epsilon_of(private(1.0, trust="nobody", sampling="none"), [])
    assert central is not None and local is not None and other is not None
    assert central.kind != local.kind == other.kind
    assert "trusted: the server" in central.meaning


def test_a_run_is_followed_line_by_line(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.poll()
    assert watch.server_round is None
    (tmp_path / "privacy.json").write_text(json.dumps(private(8.0)))
    metrics = tmp_path / "metrics.jsonl"
    first = json.dumps({"server_round": 1, "central": {"loss": 2.0, "accuracy": 0.5}})
    second = json.dumps({"server_round": 2, "central": {}, "epsilon": 0.7})
    metrics.write_text(first + "\n" + second[:10])
    watch.poll()
    assert (watch.server_round, watch.name, watch.value, watch.epsilon) == (
        1,
        "accuracy",
        0.5,
        None,
    )
    with metrics.open("a") as file:
        file.write(second[10:] + "\nnot json\n")
    watch.poll()
    assert (watch.server_round, watch.value) == (2, 0.5)
    assert watch.epsilon is not None and watch.epsilon.value == 0.7, "spent so far, not planned"
    metrics.write_text(first + "\n")  # cut back to a checkpoint
    watch.poll()
    assert watch.server_round == 1
