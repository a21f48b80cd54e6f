"""`audit=canary_clients`: near theory on an honest run, above it with less noise; never a bound."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.protection import Protection, Statement
from privacy.audit.canary_clients import unit_vector
from privacy.audit.canary_clients_audit import PlantedDirections, noise_of
from privacy.audit.tradeoff import gdp_epsilon
from privacy.events import Event, Gaussian
from tests.privacy.audit._command import audit, no_report, scale_noise, written

Patch = pytest.MonkeyPatch
WORDS = (
    "audit=canary_clients",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=1",
    "privacy.delta=1e-4",
    "audit.canaries=200",
    "audit.others=silent",
)


def test_the_estimate_is_near_theory_and_sees_less_noise(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """z = 1, one round, d = 3010: μ = 1 / √(1 + k/(z²d)); a standard error of 1/√200. With half the
    noise, 2 / √(1 + 4k/d)."""
    told = audit(tmp_path / "honest", "user_dp", *WORDS, clients=400)
    assert told.exit_code == 0, told.output
    honest = written(tmp_path / "honest")
    assert honest["estimate"]["mu"] == pytest.approx(1 / np.sqrt(1 + 200 / 3010), abs=3 / 200**0.5)
    assert honest["estimate"]["epsilon"] == pytest.approx(
        gdp_epsilon(1e-4, honest["estimate"]["mu"])
    )
    assert honest["estimate"]["warnings"] == [] and honest["kind"] == "an ESTIMATE, not a bound"
    unseen = np.array(honest["scaled_cosines_of_directions_nobody_sent"])
    assert len(unseen) == 200 and abs(unseen.mean()) < 3 / np.sqrt(200)
    assert len(set(written(tmp_path / "honest", "canaries.json")["clients"])) == 200
    (page,) = (tmp_path / "honest").glob("runs/toy/*/report.html")
    assert "an ESTIMATE, not a bound" in page.read_text()
    no_report(monkeypatch)
    scale_noise(monkeypatch, 0.5)
    told = audit(tmp_path / "halved", "user_dp", *WORDS, clients=400)
    assert told.exit_code == 0, "an estimate refutes nothing"
    assert "an ESTIMATE, not a bound" in told.output
    halved = written(tmp_path / "halved")
    assert halved["estimate"]["mu"] == pytest.approx(2 / np.sqrt(1 + 800 / 3010), abs=3 / 200**0.5)
    assert halved["estimate"]["epsilon"] > halved["claim"]["epsilon"] and not halved["refuted"]


def test_sampled_clients_and_too_many_canaries(tmp_path: Path, monkeypatch: Patch) -> None:
    """Half of 100 clients take part, all canaries: k T / (z² d) = 50 / (0.09 · 3010) = 0.2."""
    no_report(monkeypatch)
    words = ("participation=bernoulli", "participation.rate=0.5", "audit.others=honest")
    more = ("privacy.noise_multiplier=0.3", "audit.canaries=100")
    told = audit(tmp_path, "user_dp", *WORDS, *words, *more, clients=100)
    assert told.exit_code == 0 and "warning: " in told.output, told.output
    found = written(tmp_path)
    took_part = sum(found["rounds"])
    assert 40 < took_part < 60 and found["estimate"]["canaries"] == took_part
    share = took_part / (0.09 * 3010)
    (warning,) = found["estimate"]["warnings"]
    assert f"add {share:.2g} of the noise's own energy" in warning


def test_directions_by_hand() -> None:
    """Weights [2, 3] and a bias [2]: eight numbers, in the model's order; 1e6 of each is sent."""
    shapes = {"w": torch.Size([2, 3]), "b": torch.Size([2])}

    class Watch(Protection):
        def seal_(self, weights, start, clients, server_round, num_examples, told):  # type: ignore[no-untyped-def]
            self.examples = num_examples
            return {}

    inner = Watch()
    planted = PlantedDirections(inner, 0, np.array([4, 7]), shapes, silent=True)
    start = {"w": torch.ones(2, 3), "b": torch.zeros(2)}
    weights = {name: torch.stack([t + 5] * 2) for name, t in start.items()}
    planted.seal_(weights, start, np.array([7, 2]), 1, np.array([3, 3]), {})
    sent = torch.cat([weights["w"][0].flatten() - 1, weights["b"][0]]).double().numpy()
    np.testing.assert_allclose(sent / 1e6, unit_vector(0, 1, 8), atol=1e-6)
    assert torch.equal(weights["w"][1], start["w"]) and planted.rounds_K.tolist() == [0, 1]
    assert inner.examples.tolist() == [10**9, 3]
    moved = {name: t + 2 * planted.direction(1)[name] for name, t in start.items()}
    np.testing.assert_allclose(planted.change(start, moved), 2 * unit_vector(0, 1, 8), atol=1e-12)


def test_the_noise_of_other_mechanisms_is_that_of_one_release() -> None:
    """Of a Gaussian, its own; else of the claim: ε = 4.377178 at 1e-5 is μ = 1."""
    claim = Statement(mechanism="x", epsilon=4.377178, delta=1e-5)
    line = {"events": [Event(mechanism=Gaussian(noise_multiplier=3.0)).to_json()]}
    assert noise_of(claim, [line, line], 2.4) == (2, 3.0)
    rounds, noise = noise_of(claim, [], 2.4)
    assert rounds == 1 and noise == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("privacy", "word", "expected"),
    [
        ("dp_sgd", "audit.canaries=2", "a claim per user"),
        ("local_dp", "audit.canaries=2", "not the sum"),
        ("user_dp", "audit.canaries=50", "partition.num_clients=50"),
    ],
)
def test_what_cannot_be_estimated_is_refused(
    tmp_path: Path, privacy: str, word: str, expected: str
) -> None:
    told = audit(tmp_path, privacy, "audit=canary_clients", word, *WORDS[1:4], clients=4)
    assert told.exit_code == 2 and expected in told.output, told.output
    assert not (tmp_path / "runs").exists()
