"""`audit=membership`: noise that is not added is found, noise that is hides who was a member."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.client.gradient import Plain
from fedsim.client.sequential import train_client
from fedsim.client.work import LocalSGD
from fedsim.config import compose
from fedsim.protection import Protection
from fedsim.simulation import Simulation
from privacy.audit.membership import scaled_confidence
from privacy.audit.membership_audit import first_right
from privacy.audit.rates import rate_over_targets
from privacy.audit.twins import PartOfSamples, Twins
from tests.privacy.audit._command import audit, no_report, scale_noise, written

Patch = pytest.MonkeyPatch

WORDS = (
    "audit=membership",
    "privacy.epsilon=0.1",
    "privacy.sample_rate=0.2",
    "client.batch_size=270",
    "client.lr=4",
    "client.steps=100",
    "audit.targets=8",
    "audit.shadows=16",
)


def test_noise_that_is_not_added_is_refuted(tmp_path: Path, monkeypatch: Patch) -> None:
    """ε = 0.1 is claimed; honest, the attack does no better than a guess."""
    with monkeypatch.context() as patched:
        no_report(patched)
        told = audit(tmp_path / "honest", "dp_sgd", *WORDS)
    assert told.exit_code == 0 and "stands" in told.output, told.output
    honest = written(tmp_path / "honest")
    assert honest["attacks"]["LiRA"]["area_under_roc"] == pytest.approx(0.5, abs=0.02)
    scale_noise(monkeypatch, 0.0)
    told = audit(tmp_path / "none", "dp_sgd", *WORDS)
    assert told.exit_code == 6 and "REFUTED" in told.output, told.output
    found, drawn = written(tmp_path / "none"), written(tmp_path / "none", "canaries.json")
    assert found["refuted"] and found["bounds"]["epsilon_gdp"] > 0.1
    lira, threshold = found["attacks"]["LiRA"], found["attacks"]["loss threshold"]
    assert lira["area_under_roc"] > threshold["area_under_roc"] > 0.51
    assert [rate["fpr"] for rate in lira["true_positives"]] == [0.001, 0.01, 0.1]
    assert all(r["low"] <= r["tpr"] <= r["high"] for r in lira["true_positives"])
    tenth = lira["true_positives"][2]
    assert tenth["low"] > tenth["allowed"] > 0.1
    assert len(drawn["members"]) == 1347 and 600 < sum(drawn["members"]) < 750
    (png,) = (tmp_path / "none").glob("runs/toy/*/audit.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (page,) = (tmp_path / "none").glob("runs/toy/*/report.html")
    assert "Audit" in page.read_text() and "LiRA: TPR" in page.read_text()


def test_a_run_without_a_claim_shows_what_it_leaks(tmp_path: Path, monkeypatch: Patch) -> None:
    """Two rounds of 20 epochs, and the members of both are told apart; nothing to refute."""
    no_report(monkeypatch)
    words = ("client.steps=null", "client.epochs=20", "client.lr=0.1", "rounds=2")
    told = audit(
        tmp_path,
        "none",
        "audit=membership",
        *words,
        "audit.targets=2",
        "audit.shadows=8",
        clients=4,
    )
    assert told.exit_code == 0 and "claims no privacy" in told.output, told.output
    found = written(tmp_path)
    assert found["claim"] is None and not found["refuted"] and found["rounds"] == 2
    assert found["attacks"]["LiRA"]["area_under_roc"] > 0.6


def test_a_twin_is_a_client_on_its_own_part(tmp_path: Path) -> None:
    """Trained alone by the reference, on its own batches, it scores the samples alike."""
    words = ["partition.num_clients=20", "precision=float64", "data.image=true", "model.hidden=[9]"]
    simulation = Simulation(compose("quickstart", words))
    runtime = simulation.runtime
    n = len(runtime.samples(3))
    member_KN = np.random.default_rng(0).random((4, n)) < 0.5
    twins = Twins(runtime, Protection(), 3, member_KN)
    start = runtime.initial_params()
    phi_KN = twins.train(1, start, start)
    index = torch.from_numpy(runtime.samples(3))
    x, y = runtime.dataset.train_x[index], runtime.dataset.train_y[index].numpy()

    def scores(params: dict[str, torch.Tensor]) -> np.ndarray:
        runtime.model.eval()
        return scaled_confidence(runtime.apply(params, x).detach().numpy(), y)

    np.testing.assert_allclose(phi_KN[0], scores(start), atol=1e-12)
    for k, client in enumerate(twins.index_K.tolist(), start=1):
        done = train_client(
            twins.runtime, client=client, server_round=1, params=start, client_arrays={}
        )
        np.testing.assert_allclose(phi_KN[k], scores(done.params), atol=1e-10)
    assert not np.allclose(phi_KN[1], phi_KN[2], atol=1e-3)


def test_a_client_trains_on_its_part_only() -> None:
    part = PartOfSamples(Plain(), {5: np.array([1, 4, 8])})
    work = LocalSGD(batch_size=2, epochs=3)
    mine = part.batches(work, 0, 1, 5, 10)
    assert sorted(np.concatenate(mine)) == [1] * 3 + [4] * 3 + [8] * 3
    others = part.batches(work, 0, 1, 6, 10)
    assert sorted(np.concatenate(others)) == sorted([*range(10)] * 3)


def test_rates_by_hand() -> None:
    """Two targets; above the 1 non-member of 4 that is let in stand 2 of 2, and 1 of 2, members."""
    score = np.array([[9.0, 8, 7, 1], [6, 2, 3, 0]])
    member = np.array([[True, True, False, False], [False, True, True, False]])
    assert first_right(score.ravel(), member.ravel(), 3) == 2
    found = rate_over_targets(score, member, 0.5)
    assert found.tpr == 1.0 and found.high == 1.0
    found = rate_over_targets(score, member, 0.25)  # 9 and 8 are above 7, 6; 2 and 3 are not
    assert found.tpr == pytest.approx(0.5)
    assert found.low == 0.0 and found.high == 1.0  # rates of 1 and 0: t of one degree of freedom


def test_what_cannot_be_attacked_is_refused(tmp_path: Path) -> None:
    for privacy, word, expected in [
        ("dp_sgd", "partition.num_clients=50", "partition.num_clients=1"),
        ("dp_sgd", "partition.holdout=0.1", "partition.holdout=0"),
        ("dp_sgd", "audit.guesses=1000000", "audit.guesses"),
        ("user_dp", "rounds=2", "per user"),
        ("none", "strategy=scaffold", "more than the model"),
        ("none", "data=diabetes", "one class per sample"),
    ]:
        noise = [] if privacy == "none" else ["privacy.epsilon=null", "privacy.noise_multiplier=1"]
        told = audit(tmp_path, privacy, "audit=membership", *noise, word, clients=4)
        assert told.exit_code == 2 and expected in told.output, told.output
    assert not (tmp_path / "runs").exists()
