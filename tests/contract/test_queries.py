"""What holds of every strategy that asks: engines agree, runs go on, reports are drawn once."""

import json
from pathlib import Path

import pytest
import torch

from fedsim.client.answers import answered
from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.contract._discover import QUERIES

DATA = ["data=zipf", "data.sizes=[400,300,20]", "data.items=30", "data.bits=8"]
WORDS = [
    *DATA,
    *("model=none", "participation=full", "partition=natural", "partition.column=party"),
    *("strategy.k=3", "device=cpu", "checkpoint.every=1", "seed=4"),
]
LEVELS = ["strategy.levels=4"]
OWN = {
    "histogram": ["rounds=1"],
    "fedpem": [*LEVELS, "rounds=1"],
    "tap": [*LEVELS, "strategy.shared_levels=2", "rounds=3"],
    "taps": [*LEVELS, "strategy.shared_levels=1", "rounds=4", "strategy.vote=0.2"],
}
MECHANISM = {"triehh": ["privacy=sample_threshold", "privacy.delta=0.05", "privacy.epsilon=8"]}

each = pytest.mark.parametrize("name", QUERIES)


def words(name: str, *more: str) -> list[str]:
    private = MECHANISM.get(name, ["privacy=local_reports"])
    own = OWN.get(name, [*LEVELS, "rounds=4"])
    return [*WORDS, f"strategy={name}", *own, *private, *more]


@pytest.fixture(autouse=True)
def _cheap_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.lifecycle.environment", lambda *args: {})


def test_there_is_something_to_test() -> None:
    assert {"pem", "gtf", "fedpem", "tap", "taps", "histogram", "triehh"} <= set(QUERIES)


@each
def test_engines_agree_to_the_bit(name: str) -> None:
    ends, scores = [], []
    for engine in ("engine=cohort", "engine=in_process", "engine.wire_check=true"):
        more = ["engine=in_process", engine] if "wire" in engine else [engine]
        simulation = Simulation(compose("base", words(name, *more)))
        *_, (release, report) = simulation.loop.run(simulation.runtime.initial_params())
        assert not report.rejected
        ends.append(release)
        scores.append(report.central)
    for release in ends[1:]:
        assert all(torch.equal(release[key], ends[0][key]) for key in ends[0])
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["f1"] > 0
    assert (ends[0]["items"] >= 0).any()


@each
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """With the same costs, scores, findings and ledger."""
    config = compose("base", words(name, f"output.root={tmp_path}"))
    whole = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    reports = list(whole.start())
    last = reports[-1].server_round
    stops = iter([False] * max(last - 1, 0) + [True])
    cut = Run(
        simulation=Simulation(config), folder=RunFolder.create(config), stop=lambda: next(stops)
    )
    list(cut.start())
    opened = RunFolder.open(cut.folder.path)
    rest = Run(simulation=Simulation(opened.config()), folder=opened)
    list(rest.resume())
    for file in ("model.safetensors", "findings.json", "ledger.jsonl"):
        ends = [run.folder.path / file for run in (whole, rest)]
        assert sha256(ends[0].read_bytes()) == sha256(ends[1].read_bytes()), file
    rows = list(rest.folder.rounds())
    assert rows[-1]["central"] == pytest.approx(reports[-1].central)
    claim = json.loads((rest.folder.path / "summary.json").read_text())["privacy"]
    assert claim["epsilon"] == pytest.approx(8.0 if name == "triehh" else 4.0)
    assert claim["unit"] == "user"
    assert claim["delta"] == (0.05 if name == "triehh" else 0.0)


@pytest.mark.parametrize("name", [name for name in QUERIES if name != "triehh"])
def test_a_message_that_comes_again_gets_the_same_reports(name: str) -> None:
    """Coins are the system's, so that reports drawn again would be others."""
    fresh = words(name, "engine=in_process", "privacy.noise_source=system", "privacy.epsilon=0.5")
    simulation = Simulation(compose("base", fresh))
    grid, sent = simulation.grid, []
    send = grid.send_and_receive

    def twice(messages, **rest):
        sent.append(next(iter(messages)))
        return send(messages, **rest)

    grid.send_and_receive = twice
    loop = simulation.loop.run(simulation.runtime.initial_params())
    next(loop)
    next(loop)  # round 1
    message, client = sent[0], 0

    def ask(context):
        content = answered(lambda _: simulation.runtime, message, context, client, zero_copy=True)
        return {n: a.numpy().tobytes() for n, a in content.array_records["client-arrays"].items()}

    context = grid.context(client)  # has answered in the loop already
    kept = ask(context)
    assert ask(context) == kept
    another = grid.context(client)
    another.state.clear()
    assert ask(another) != kept


def test_a_strategy_whose_users_vote_anew_is_no_local_reporting() -> None:
    triehh = [*WORDS, *LEVELS, "strategy=triehh", "rounds=4"]
    with pytest.raises(ConfigError, match="one report of each user"):
        Simulation(compose("base", [*triehh, "privacy=local_reports"])).check()
    with pytest.raises(ConfigError, match="use strategy=triehh"):
        Simulation(compose("base", [*words("pem"), "privacy=sample_threshold"])).check()
    with pytest.raises(ConfigError, match="use strategy=tap"):
        Simulation(compose("quickstart", ["privacy=local_reports"])).check()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["data=digits"], "counts items"),
        (["strategy.levels=9", "rounds=9"], "levels: 9, but items have 8 bits"),
        (["rounds=3"], "set rounds=4"),
    ],
)
def test_what_cannot_be_searched_is_refused(more: list[str], match: str) -> None:
    given = [w for w in words("pem") if not (more == ["data=digits"] and w in DATA)]
    given = [w for w in given if not (more == ["data=digits"] and w.startswith("partition"))]
    with pytest.raises(ConfigError, match=match):
        Simulation(compose("base", [*given, *more])).check()


def test_items_are_not_trained_on() -> None:
    with pytest.raises(ConfigError, match="holds items to be counted"):
        Simulation(compose("quickstart", ["data=zipf"])).check()


def test_parties_too_small_to_search_alone_are_refused() -> None:
    few = ["data.sizes=[3,2,1]", "rounds=3"]
    with pytest.raises(ConfigError, match="use strategy=pem"):
        Simulation(compose("base", [*words("tap"), *few])).check()
