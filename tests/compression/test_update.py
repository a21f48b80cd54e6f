"""The layer between a client's work and its message: what is remembered, what goes with what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.compression import Compressor
from fedsim.compression.top_k import TopK
from fedsim.config import Config, compose
from fedsim.errors import ConfigError
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.helpers import distance

SMALL = [
    *("rounds=2", "partition.num_clients=6", "participation=bernoulli", "participation.rate=0.7"),
    *("model.hidden=[4]", "client.epochs=1", "device=cpu", "precision=float64"),
]


def simulation(*words: str, scenario: str = "quickstart") -> Simulation:
    return Simulation(compose(scenario, [*(SMALL if scenario == "quickstart" else []), *words]))


def end(*words: str) -> dict[str, torch.Tensor]:
    made = simulation(*words)
    *_, (params, report) = made.loop.run(made.runtime.initial_params())
    assert not report.rejected
    return params


def test_feedback_by_hand() -> None:
    """Of (1, -3), then (1, 1), one number at a time: what is left of the first comes later."""
    compressor = Compressor(codec=TopK(share=0.5), seed=0)
    start = {"w": torch.tensor([10.0, 20.0], dtype=torch.float64)}
    told = []
    memory: dict[str, torch.Tensor] = {}
    for server_round, update in enumerate(([1.0, -3.0], [1.0, 1.0], [0.0, 0.0]), start=1):
        model = {"w": start["w"] + torch.tensor(update)}
        sent, memory = compressor.of_client(model, start, 0, server_round, memory)
        told.append((compressor.restore(sent, start)["w"].tolist(), memory["residual"].tolist()))
    assert told == [
        ([10.0, 17.0], [1.0, 0.0]),
        ([12.0, 20.0], [0.0, 1.0]),
        ([10.0, 21.0], [0.0, 0.0]),
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_remembered(bad: float) -> None:
    compressor = Compressor(codec=TopK(share=0.5), seed=0)
    start = {"w": torch.zeros(2)}
    sent, none = compressor.of_client({"w": torch.tensor([bad, 1.0])}, start, 0, 1, {})
    assert not torch.isfinite(compressor.restore(sent, start)["w"]).all()
    assert none["residual"].tolist() == [0.0, 0.0]
    before = {"residual": torch.tensor([2.0, 3.0])}
    _, after = compressor.of_client({"w": torch.tensor([bad, 1.0])}, start, 0, 2, before)
    assert after["residual"].tolist() == [2.0, 3.0]


def test_who_remembers_what_is_told_by_index_alone() -> None:
    """Whoever takes part, and however many at once."""
    words = ("compression=top_k", "compression.share=0.02")
    ends = [end(*words, f"engine.chunk={chunk}") for chunk in (1, 6)]
    assert distance(*ends) < 1e-12
    assert distance(ends[0], end(*words, "compression.error_feedback=false")) > 1e-3


def test_memory_is_no_traffic() -> None:
    """Remembering changes no byte, up or down."""
    told = []
    for feedback in ("true", "false"):
        made = simulation(
            "compression=top_k", f"compression.error_feedback={feedback}", "devices=equal"
        )
        told.append([r.footprint for _, r in made.loop.run(made.runtime.initial_params())])
    assert [list(round_["train"].values())[:3] for round_ in told[0][1:]] == [
        list(round_["train"].values())[:3] for round_ in told[1][1:]
    ]


def test_a_deployment_that_goes_on_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compose("quickstart", [*SMALL, "compression=top_k", f"output.root={tmp_path}"])
    stops = iter([False, True, False])
    folder = RunFolder.create(made)
    list(Run(simulation=Simulation(made), folder=folder, stop=lambda: next(stops)).start())
    again = Run(simulation=Simulation(made), folder=RunFolder.open(folder.path))
    monkeypatch.setattr(type(again.simulation.grid), "keeps_memory", False)
    list(again.resume())
    assert "begin again with nothing left out" in caplog.text


# --- what goes with what -----------------------------------------------------------------------

NOISE = ["privacy.noise_multiplier=2", "privacy.epsilon=null", "privacy.delta=1e-3"]

REFUSED = {
    "a head of one's own": (["strategy=fedper"], "strategies.fedper.FedPer start from, or send"),
    "no common model": (["strategy=dsgd", "topology=ring"], "something else; set compression=none"),
    "a secure sum": (
        ["privacy=distributed_dp", *NOISE], "what encoding makes of these"
    ),
    "noise on the sum": (
        ["privacy=user_dp", *NOISE], "e.g. privacy=local_dp"
    ),
    "forged models": (["attack=sign_flip"], "forges models"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_encoded_is_refused(case: str) -> None:
    words, says = REFUSED[case]
    with pytest.raises(ConfigError, match=says):
        simulation("compression=qsgd", *words).check()
    simulation(*words).check()


def test_an_audit_is_of_what_is_not_encoded() -> None:
    config = compose("quickstart", [*SMALL, "compression=qsgd"])
    with pytest.raises(ConfigError, match="an audit looks at"):
        Simulation(config, plant=lambda _, protection: protection).check()


@pytest.mark.parametrize("scenario", ["heavy_hitters", "diff2_least_squares"])
def test_what_is_no_model_is_refused(scenario: str) -> None:
    with pytest.raises(ConfigError, match="start from, or send"):
        simulation("compression=qsgd", scenario=scenario).check()


@pytest.mark.parametrize(
    "words",
    [
        ["privacy=local_dp", *NOISE],
        ["privacy=dp_sgd", *NOISE, "privacy.sample_rate=0.2"],
    ],
    ids=lambda words: words[0],
)
def test_what_a_client_may_show_to_anybody_is_encoded_after_it(words: list[str]) -> None:
    """An encoding that loses nothing changes neither the model nor the claim: it comes last."""
    plain, encoded = (
        simulation(*words, f"compression={name}", *more)
        for name, more in (("none", []), ("top_k", ["compression.share=1"]))
    )
    claims = [str(made.protection.planned()) for made in (plain, encoded)]
    assert claims[0] == claims[1]
    ends = [list(made.loop.run(made.runtime.initial_params()))[-1][0] for made in (plain, encoded)]
    assert distance(ends[0], ends[1]) < 1e-12


def test_a_run_without_has_the_hash_that_it_had() -> None:
    config = compose("quickstart", SMALL)
    before = Config(config.scenario, config.overrides, {**config.values})
    del before.values["compression"]  # a run folder of before there was any
    assert Config.from_yaml(before.to_yaml()).values == config.values
    assert before.hash == config.hash != compose("quickstart", [*SMALL, "compression=qsgd"]).hash


def test_a_plan_counts_what_is_sent() -> None:
    from fedsim.plan import plan

    made = simulation("compression=uniform", "evaluation.central=false")
    cost = plan(made)
    trained = cost.messages / 2
    params = made.runtime.initial_params()
    size = sum(t.nbytes for t in params.values())
    count = size // 8
    code = 16 + -(-count * 4 // 8)
    assert cost.megabytes == pytest.approx(trained * (size + code) / 1e6)
