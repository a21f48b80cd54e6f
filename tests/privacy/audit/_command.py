"""`fedsim audit` on a small scenario, for the tests of single audits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fedsim.auditing import drive
from fedsim.cli import app
from privacy import normal

SCENARIO = """
defaults: [base, override /participation: full, override /privacy: {privacy}, _self_]
rounds: 1
model: {{hidden: [40]}}
partition: {{num_clients: {clients}}}
client: {{lr: 1.0, epochs: null, steps: 1}}
evaluation: {{central: false}}
output: {{root: {root}}}
"""


def audit(folder: Path, privacy: str, *words: str, clients: int = 1) -> Result:
    folder.mkdir(exist_ok=True)
    file = folder / "toy.yaml"
    root = folder / "runs"
    file.write_text(SCENARIO.format(privacy=privacy, root=root, clients=clients))
    return CliRunner().invoke(app, ["audit", f"scenario={file}", *words])


def written(folder: Path, name: str = "audit.json") -> dict[str, Any]:
    (file,) = folder.glob(f"runs/toy/*/{name}")
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def scale_noise(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The accountant and the ledger know nothing of it."""
    honest = normal._Keyed.normal

    def scaled(self: Any, size: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return factor * honest(self, size, dtype=dtype)

    monkeypatch.setattr(normal._Keyed, "normal", scaled)


def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "write_report", lambda folder: None)
