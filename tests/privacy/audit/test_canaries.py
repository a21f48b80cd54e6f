"""`fedsim audit`: an honest run is not refuted, one with less noise than its ledger says is."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from fedsim.cli import app
from fedsim.protection import Protection
from privacy.audit.delegate import Delegate
from privacy.audit.planted import TOO_LONG, Diracs

SCENARIO = """
defaults: [base, override /model: linear, override /participation: full, _self_]
plugins: [toy_mechanisms.]
rounds: 1
partition: {{num_clients: {clients}}}
client: {{lr: 1.0, epochs: null, steps: {steps}}}
evaluation: {{central: false}}
output: {{root: {root}}}
privacy: {privacy}
"""


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def audit(tmp: Path, privacy: str, *words: str, clients: int = 4, steps: int = 1) -> Result:
    file = tmp / "toy.yaml"
    file.write_text(
        SCENARIO.format(clients=clients, steps=steps, root=tmp / "runs", privacy=privacy)
    )
    return CliRunner().invoke(app, ["audit", f"scenario={file}", *words])


def written(tmp: Path, name: str = "audit.json") -> dict:  # type: ignore[type-arg]
    (file,) = tmp.glob(f"runs/toy/*/{name}")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


USERS = "{_target_: toy_mechanisms.Users, noise_multiplier: 1.0, factor: %s, relation: %s}"
EXAMPLES = "{_target_: toy_mechanisms.Examples, noise_multiplier: %s, rate: %s, factor: %s}"


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_clients_whose_noise_is_halved_are_refuted(tmp_path: Path, relation: str) -> None:
    for factor, code in [(1.0, 0), (0.5, 6)]:
        folder = tmp_path / str(factor)
        folder.mkdir()
        words = ("audit.canaries=600",)
        told = audit(folder, USERS % (factor, relation), *words, clients=600)
        assert told.exit_code == code, told.output
        found = written(folder)
        assert found["refuted"] is (code == 6)
        assert ("REFUTED" in told.output) is (code == 6)
        claim, bounds = found["claim"], found["bounds"]
        assert (claim["unit"], claim["relation"], claim["delta"]) == ("user", relation, 1e-5)
        assert bounds["epsilon_steinke"] < bounds["epsilon_gdp"]
        assert (bounds["epsilon_gdp"] > claim["epsilon"]) is (code == 6)
        assert "every update of the clients" in found["threat"]
        mask = written(folder, "canaries.json")
        assert mask["included"] == found["included"] and 240 < sum(mask["included"]) < 360
        (png,) = folder.glob("runs/toy/*/audit.png")
        assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("others", ["silent", "honest"])
def test_samples_whose_noise_is_halved_are_refuted(tmp_path: Path, others: str) -> None:
    for factor, code in [(1.0, 0), (0.5, 6)]:
        folder = tmp_path / str(factor)
        folder.mkdir()
        words = ("audit.canaries=600", f"audit.others={others}")
        told = audit(folder, EXAMPLES % (2.0, 1.0, factor), *words, steps=4)
        assert told.exit_code == code, told.output
        assert written(folder)["claim"]["unit"] == "example"


def test_a_sampler_that_draws_more_than_it_says_is_refuted(tmp_path: Path) -> None:
    """q = 0.1 is accounted, 0.8 is drawn: the canaries go through the mechanism's own sampler."""
    for factor, code in [(1.0, 0), (8.0, 6)]:
        folder = tmp_path / str(factor)
        folder.mkdir()
        privacy = EXAMPLES % (1.0, 0.1, 1.0)
        privacy = privacy.replace("}", f", rate_factor: {factor}}}")
        told = audit(folder, privacy, "audit.canaries=600", steps=4)
        assert told.exit_code == code, told.output


def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    told = audit(tmp_path, "{_target_: fedsim.protection.NoPrivacy}")
    assert told.exit_code == 2 and "claims no privacy" in told.output
    told = audit(tmp_path, USERS % (1.0, "add_remove"), "audit.canaries=50")
    assert told.exit_code == 2 and "partition.num_clients=50" in told.output
    told = audit(tmp_path, USERS % (1.0, "add_remove"), "audit.canaries=5000")
    assert told.exit_code == 2 and "the model has 650" in told.output
    examples = EXAMPLES % (1.0, 1.0, 1.0)
    told = audit(tmp_path, examples, "audit.canaries=50", "engine=in_process")
    assert told.exit_code == 2 and "engine=cohort" in told.output
    for word, expected in [
        ("audit.canaries=5", ">= 10"),
        ("audit.canary=5", "audit.canary"),
        ("audit=canarys", "did you mean 'canaries'"),
        ("audit.guesses=2000", "at most 1000"),
        ("audit.a.b=1", "audit.<key>=<value>"),
    ]:
        told = audit(tmp_path, examples, word)
        assert told.exit_code == 2 and expected in told.output, told.output


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
