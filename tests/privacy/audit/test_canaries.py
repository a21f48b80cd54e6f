"""`fedsim audit`: an honest run is not refuted, one with less noise than its ledger says is."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from fedsim.auditing import drive
from fedsim.cli import app
from fedsim.protection import Protection
from privacy import dp_sgd, normal
from privacy.audit.delegate import Delegate
from privacy.audit.findings import Findings
from privacy.audit.planted import TOO_LONG, Diracs
from privacy.secure_aggregation import SecureAggregation

SCENARIO = """
defaults: [base, override /participation: full, override /privacy: {privacy}, _self_]
rounds: 1
model: {{hidden: [40]}}
partition: {{num_clients: 4}}
client: {{lr: 1.0, epochs: null, steps: 1}}
evaluation: {{central: false}}
output: {{root: {root}}}
privacy: {{epsilon: null, noise_multiplier: 1.0}}
"""

Patch = pytest.MonkeyPatch


def audit(folder: Path, privacy: str, *words: str) -> Result:
    folder.mkdir(exist_ok=True)
    file = folder / "toy.yaml"
    file.write_text(SCENARIO.format(privacy=privacy, root=folder / "runs"))
    return CliRunner().invoke(app, ["audit", f"scenario={file}", *words])


def written(folder: Path, name: str = "audit.json") -> dict[str, Any]:
    (file,) = folder.glob(f"runs/toy/*/{name}")
    values: dict[str, Any] = json.loads(file.read_text())
    return values


@pytest.fixture
def quick(monkeypatch: Patch) -> None:
    """Leave out what takes longest and is tested once: the report and the picture."""
    monkeypatch.setattr(drive, "write_report", lambda folder: None)
    monkeypatch.setattr(Findings, "picture", lambda self: b"")


def halve_noise(monkeypatch: Patch) -> None:
    """The accountant and the ledger know nothing of it."""
    honest = normal._Keyed.normal

    def halved(self: Any, size: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return honest(self, size, dtype=dtype) / 2

    monkeypatch.setattr(normal._Keyed, "normal", halved)


def check_both(tmp_path: Path, monkeypatch: Patch, privacy: str, *words: str) -> Path:
    """Audit the run as it is, and with half its noise; return the folder of the latter."""
    told = audit(tmp_path / "honest", privacy, *words)
    assert told.exit_code == 0 and "stands" in told.output, told.output
    assert not written(tmp_path / "honest")["refuted"]
    halve_noise(monkeypatch)
    told = audit(tmp_path / "halved", privacy, *words)
    assert told.exit_code == 6 and "REFUTED" in told.output, told.output
    found = written(tmp_path / "halved")
    assert found["refuted"] and found["bounds"]["epsilon_gdp"] > found["claim"]["epsilon"]
    assert found["bounds"]["epsilon_steinke"] < found["bounds"]["epsilon_gdp"]
    return tmp_path / "halved"


def test_dp_sgd_with_half_its_noise_is_refuted(tmp_path: Path, monkeypatch: Patch) -> None:
    """Whole batches, four steps, z = 2: ε = 4.377 is claimed; 2000 canary samples, 99 %."""
    words = ("client.steps=4", "privacy.noise_multiplier=2", "privacy.sample_rate=1")
    folder = check_both(tmp_path, monkeypatch, "dp_sgd", *words, "audit.canaries=2000")
    found, mask = written(folder), written(folder, "canaries.json")
    claim = found["claim"]
    assert claim["epsilon"] == pytest.approx(4.377, abs=1e-3)
    assert (claim["unit"], claim["relation"], claim["delta"]) == ("example", "add_remove", 1e-5)
    assert "every update of the clients" in found["threat"]
    assert mask["included"] == found["included"] and 900 < sum(mask["included"]) < 1100
    assert [rate["fpr"] for rate in found["true_positives"]] == [0.01, 0.1]
    assert all(rate["low"] > rate["allowed"] for rate in found["true_positives"])
    (png,) = folder.glob("runs/toy/*/audit.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (page,) = folder.glob("runs/toy/*/report.html")
    assert "Audit" in page.read_text() and "REFUTED" in page.read_text()


@pytest.mark.parametrize("clipping", ["per_layer", "automatic"])
def test_canaries_are_clipped_as_samples_are(tmp_path: Path, quick: None, clipping: str) -> None:
    """Per layer, a canary has one tensor's share of C, a half, and so μ = 0.5/z, here 1."""
    noise = {"per_layer": 0.5, "automatic": 1.0}[clipping]
    words = (f"privacy.clipping={clipping}", "privacy.sample_rate=1")
    told = audit(tmp_path, "dp_sgd", *words, f"privacy.noise_multiplier={noise}")
    assert told.exit_code == 0, told.output
    found = written(tmp_path)
    score, included = np.array(found["scores"]), np.array(found["included"], bool)
    effect = (score[included].mean() - score[~included].mean()) / score[~included].std()
    assert effect == pytest.approx(1, abs=4 / np.sqrt(250))
    assert score[included].std() / score[~included].std() == pytest.approx(1, abs=0.2)


def test_other_samples_may_be_honest(tmp_path: Path, quick: None) -> None:
    """They move coordinates, too; that is noise to the adversary, and no privacy is lost."""
    words = ("privacy.sample_rate=1", "audit.others=honest", "client.lr=0.1")
    assert audit(tmp_path / "honest", "dp_sgd", *words).exit_code == 0
    assert audit(tmp_path / "silent", "dp_sgd", *words[::2]).exit_code == 0
    honest, silent = written(tmp_path / "honest"), written(tmp_path / "silent")
    assert np.std(honest["scores"]) > 1.2 * np.std(silent["scores"])
    assert honest["included"] == silent["included"]
    assert "knows the mechanism and the canaries" in honest["threat"]


def test_a_sampler_that_draws_more_than_it_says_is_refuted(
    tmp_path: Path, monkeypatch: Patch, quick: None
) -> None:
    """q = 0.1 is accounted, 0.8 is drawn: canaries go through the mechanism's own sampler."""
    words = ("privacy.sample_rate=0.1", "client.steps=4", "audit.canaries=2000")
    assert audit(tmp_path / "honest", "dp_sgd", *words).exit_code == 0
    honest = dp_sgd.DPSGDEstimator.batches

    def often(self: Any, *args: Any) -> list[np.ndarray]:
        draws = [
            honest(self, work, seed + i, *key) for i in range(8) for work, seed, *key in [args]
        ]
        return [np.unique(np.concatenate(step)) for step in zip(*draws, strict=True)]

    monkeypatch.setattr(dp_sgd.DPSGDEstimator, "batches", often)
    told = audit(tmp_path / "often", "dp_sgd", *words)
    assert told.exit_code == 6, told.output


def test_clients_under_central_noise(tmp_path: Path, monkeypatch: Patch, quick: None) -> None:
    words = ("partition.num_clients=1000", "audit.confidence=0.95", "privacy.delta=1e-4")
    folder = check_both(tmp_path, monkeypatch, "user_dp", *words)
    assert written(folder)["claim"]["relation"] == "add_remove"
    assert "the models of all rounds" in written(folder)["threat"]
    assert len(set(written(folder, "canaries.json")["clients"])) == 1000


def test_clients_whose_shares_of_noise_are_a_quarter(
    tmp_path: Path, monkeypatch: Patch, quick: None
) -> None:
    words = ("partition.num_clients=300", "audit.canaries=300", "audit.confidence=0.95")
    words += ("privacy.min_survivors=1", "privacy.delta=1e-3")
    told = audit(tmp_path / "honest", "distributed_dp", *words)
    assert told.exit_code == 0 and "stands" in told.output, told.output
    honest = SecureAggregation._share
    monkeypatch.setattr(SecureAggregation, "_share", lambda *of: honest(*of) // 4)
    told = audit(tmp_path / "less", "distributed_dp", *words)
    assert told.exit_code == 6 and "REFUTED" in told.output, told.output


def test_clients_that_add_noise_themselves(tmp_path: Path, monkeypatch: Patch, quick: None) -> None:
    """Replacing a client moves its update by 2C: a canary that is out sends the opposite."""
    words = ("partition.num_clients=1000", "audit.confidence=0.95", "privacy.noise_multiplier=2")
    folder = check_both(tmp_path, monkeypatch, "local_dp", *words)
    assert written(folder)["claim"]["relation"] == "replace_one"
    assert written(folder, "canaries.json")["out_contributes"] == "the opposite"
    assert "every update of the clients" in written(folder)["threat"]


def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    for privacy, word, expected in [
        ("user_dp", "privacy=none", "privacy"),
        ("user_dp", "audit.canaries=50", "partition.num_clients=50"),
        ("dp_sgd", "audit.canaries=5000", "the model has 3010"),
        ("dp_sgd", "engine=in_process", "engine=cohort"),
        ("dp_sgd", "audit.canaries=5", "[10, inf)"),
        ("dp_sgd", "audit.canary=5", "audit.canary"),
        ("dp_sgd", "audit=canarys", "did you mean 'canaries'"),
        ("dp_sgd", "audit.guesses=2000", "at most 1000"),
        ("dp_sgd", "audit.a.b=1", "audit.<key>=<value>"),
    ]:
        told = audit(tmp_path, privacy, word)
        assert told.exit_code == 2 and expected in told.output, told.output
    assert not (tmp_path / "runs").exists()
    file = tmp_path / "toy.yaml"
    told = CliRunner().invoke(app, ["audit", "scenario=quickstart"])
    assert told.exit_code == 2 and "claims no privacy" in told.output
    told = CliRunner().invoke(app, ["run", f"scenario={file}", "audit=canaries"])
    assert told.exit_code == 2


def test_a_delegate_hands_on_everything() -> None:
    """A level that a later mechanism adds must not be lost in an audit of it."""
    public = {name for name, _ in inspect.getmembers(Protection) if not name.startswith("_")}
    assert public <= set(vars(Delegate))


def test_diracs_by_hand() -> None:
    """Six parameters in two tensors; coordinate 4 is row 1 of the second."""
    diracs = Diracs(
        shapes={"a": torch.Size([3]), "b": torch.Size([3, 1])},
        coordinate_M=np.array([4, 0, 5]),
        sign_M=np.array([1.0, -1.0, 1.0]),
        included_M=np.array([True, True, False]),
        replaced=False,
    )
    assert diracs.places == [("b", (1, 0)), ("a", (0,)), ("b", (2, 0))]
    assert diracs.length_M.tolist() == [TOO_LONG, -TOO_LONG, 0]
    before = {"a": torch.zeros(3), "b": torch.zeros(3, 1)}
    after = {"a": torch.tensor([-2.0, 9, 9]), "b": torch.tensor([[9.0], [3], [-5]])}
    assert diracs.moved(before, after).tolist() == [3, 2, -5]
