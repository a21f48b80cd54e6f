"""Runs from Python: the same run as the command line's, as columns, a model, a claim, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import fedsim
from fedsim.config import compose
from fedsim.errors import ConfigError, ResumeError
from fedsim.notebook import Run
from fedsim.simulation import Simulation

WORDS = ["device=cpu", "rounds=3", "client.epochs=1", "model.hidden=[8]", "evaluation.every=2",
         "partition.holdout=0.3", "evaluation.clients=all"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("runs")
    return fedsim.run("quickstart", [*WORDS, f"output.root={root}"], progress=False)


def test_metrics_are_columns_with_gaps(made: Run) -> None:
    assert made.metrics["round"].tolist() == [0, 1, 2, 3]
    assert made.metrics["asked"].tolist() == [0, 10, 10, 10]
    accuracy = made.metrics["central.accuracy"]
    assert np.isnan(accuracy).tolist() == [False, True, False, False]  # 0, every second, the last
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    assert accuracy[3] == json.loads(lines[3])["central"]["accuracy"]
    own = [v for v in json.loads(lines[3])["per_client"]["accuracy"] if v is not None]
    assert made.metrics["per-client.accuracy.mean"][3] == pytest.approx(np.mean(own))


def test_the_model_is_the_one_that_was_scored(made: Run) -> None:
    simulation = Simulation(compose("quickstart", WORDS))
    data = simulation.dataset
    with torch.no_grad():
        right = made.model(data.test_x).argmax(1) == data.test_y
    assert float(right.double().mean()) == pytest.approx(made.metrics["central.accuracy"][3])
    assert not made.model.training
    assert set(made.params) == set(simulation.runtime.initial_params())


def test_an_epsilon_is_never_bare(made: Run, tmp_path: Path) -> None:
    assert made.privacy.epsilon is None
    assert str(made.privacy).startswith("none: no privacy mechanism")
    words = [*WORDS[:4], f"output.root={tmp_path}", "privacy=user_dp", "privacy.delta=0.001"]
    private = fedsim.run("quickstart", words, progress=False).privacy
    assert private.epsilon is not None and 0 < private.epsilon <= 8
    assert (private.delta, private.unit) == (0.001, "user")
    assert repr(private) == private.statement
    assert "accountant" in repr(private) and "trust: the server" in repr(private)


def test_pictures(made: Run, tmp_path: Path) -> None:
    other = fedsim.run(
        "quickstart", [*WORDS, "seed=1", f"output.root={tmp_path}"], smoke=False, progress=False
    )
    for figure in (
        made.plot_curves(),
        made.plot_curves(other, metric="train.train-loss"),
        made.plot_fairness(other),
        made.plot_participation(),
        made.plot_holdings(),
    ):
        assert isinstance(figure, Figure)
        assert figure.axes
    line = made.plot_curves().axes[0].lines[0]
    assert line.get_ydata()[-1] == pytest.approx(100 * made.metrics["central.accuracy"][3])
    with pytest.raises(ConfigError, match=r"'central.accurcy' was not measured; .*central.loss"):
        made.plot_curves(metric="central.accurcy")
    with pytest.raises(ConfigError, match=r"partition\.holdout"):
        made.plot_fairness(metric="mse")


def test_a_run_on_the_disk_is_the_same(made: Run, tmp_path: Path) -> None:
    again = fedsim.load(made.path)
    assert again.config.hash == made.config.hash
    assert repr(again) == repr(made)
    assert "3 rounds, central accuracy" in repr(made)
    assert made.report.is_file()
    with pytest.raises(ResumeError, match="is not a run folder"):
        fedsim.load(tmp_path)


def test_wrong_words_are_told_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'roudns'; did you mean 'rounds'\?"):
        fedsim.run("quickstart", ["roudns=3", f"output.root={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
