"""Runs in other tools' formats; each with the tool itself, where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim import export
from fedsim.cli import app
from fedsim.errors import ConfigError, ResumeError
from tests.report.conftest import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", rounds=4, clients=6)


def accuracy(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["central"]["accuracy"] for line in lines]


def test_what_goes_out(run: Path) -> None:
    told = export.read(run)
    assert told.name == "fedau_fashion/run"
    assert told.config["partition.alpha"] == "0.3"
    assert told.privacy.startswith("none: ")
    rows = told.rows()
    assert [r for r, _ in rows] == [0, 1, 2, 3, 4]
    assert "train.train-loss" not in rows[0][1], "what was not measured does not go out"
    assert rows[4][1]["central.accuracy"] == accuracy(run)[4]
    assert not [name for _, row in rows for name in row if "epsilon" in name]


def test_tensorboard(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time takes the first one's place
        out, count = export.export([run], "tensorboard", tmp_path / "out")
    events = EventAccumulator(str(out / "fedau_fashion" / "run"))
    events.Reload()
    found = events.Scalars("central/accuracy")
    assert count == 1
    assert [e.step for e in found] == [0, 1, 2, 3, 4]
    assert [e.value for e in found] == pytest.approx(accuracy(run), rel=1e-6)


def test_mlflow(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra 'track' is not installed")
    for _ in range(2):
        out, _ = export.export([run], "mlflow", tmp_path / "out")
    client = mlflow.MlflowClient(tracking_uri=out.resolve().as_uri())
    experiment = client.get_experiment_by_name("fedau_fashion")
    (made,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(made.info.run_id, "central.accuracy")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == accuracy(run)
    assert made.data.params["partition.alpha"] == "0.3"
    assert made.data.tags["privacy"].startswith("none: ")


def test_wandb(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    out, _ = export.export([run], "wandb-offline", tmp_path / "out")
    assert list((out / "wandb").glob("offline-run-*/*.wandb"))


def test_what_is_handed_over_to_wandb(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Made:
        def log(self, row: dict[str, float], step: int) -> None:
            told.append((step, row))

        def finish(self) -> None:
            told.append("finished")

    def init(**words: Any) -> Made:
        told.append(words)
        return Made()

    fake = ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    export.export([run], "wandb-offline", tmp_path / "out")
    start, *rows, end = told
    assert (start["mode"], start["project"], end) == ("offline", "fedsim-fedau_fashion", "finished")
    assert [step for step, _ in rows] == [0, 1, 2, 3, 4]
    assert np.allclose([row["central.accuracy"] for _, row in rows], accuracy(run))


def test_a_tool_that_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"needs the package 'mlflow'.*pip install mlflow or the"):
        export.export([run], "mlflow")
    with pytest.raises(ConfigError, match=r"--to tensorbord; did you mean 'tensorboard'\?"):
        export.export([run], "tensorbord")


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="neither a run folder"):
        export.export([run, tmp_path], "mlflow")


def test_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "_import", lambda package, to: None)
    monkeypatch.setattr("fedsim.export.mlflow.write", lambda *args: None)
    words = ["export", str(run), "--to", "mlflow", "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, words)
    assert result.stdout == f"1 runs written for mlflow: {tmp_path / 'x'}\n"
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told == {"to": "mlflow", "folder": str(tmp_path / "x"), "runs": 1}
